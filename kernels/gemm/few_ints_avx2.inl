// Products of integers for few_ints.inl, on eight lanes: what few_ints_scalar.inl says.

inline constexpr int kSide = 2;

inline __m256i load256(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline __m128i load128(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }

inline uint32_t greatest_bits(const bf16* x, int64_t n) {
  __m256i top = _mm256_setzero_si256();
  for (int64_t i = 0; i < n; i += 16)
    top = _mm256_max_epu16(top, _mm256_and_si256(load256(x + i), _mm256_set1_epi16(0x7fff)));
  const __m128i half = _mm_max_epu16(_mm256_castsi256_si128(top), _mm256_extracti128_si256(top, 1));
  const __m128i least = _mm_minpos_epu16(_mm_xor_si128(half, _mm_set1_epi16(-1)));
  return 0xffff & ~static_cast<uint32_t>(_mm_cvtsi128_si32(least));
}
inline void round_ints(const bf16* x, int64_t n, float factor, int limit, int16_t* out) {
  const __m256i most = _mm256_set1_epi16(static_cast<int16_t>(limit));
  const __m256i least = _mm256_set1_epi16(static_cast<int16_t>(-limit));
  for (int64_t i = 0; i < n; i += 16) {
    const __m256i a = _mm256_cvtps_epi32(mul(load(x + i), set1(factor)).v);
    const __m256i b = _mm256_cvtps_epi32(mul(load(x + i + 8), set1(factor)).v);
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i),
                        _mm256_max_epi16(_mm256_min_epi16(words, most), least));
  }
}

struct Nibbles {
  __m256i low, high;
};
template <int64_t kBytes>
inline Nibbles load_nibbles(const uint8_t* block, int64_t count) {
  const __m128i first = load128(block + kBytes - 16);
  const __m128i second = count > 1 ? load128(block + 2 * kBytes - 16) : _mm_setzero_si128();
  const __m256i codes = _mm256_inserti128_si256(_mm256_castsi128_si256(first), second, 1);
  const __m256i four = _mm256_set1_epi8(15);
  return {_mm256_and_si256(codes, four), _mm256_and_si256(_mm256_srli_epi16(codes, 4), four)};
}
inline __m256i sum_nibbles(const Nibbles& w, const int8_t* planes) {
  const auto part = [&](int64_t at) {
    return _mm256_add_epi16(_mm256_maddubs_epi16(w.low, load256(planes + at)),
                            _mm256_maddubs_epi16(w.high, load256(planes + at + 32)));
  };
  return _mm256_add_epi32(_mm256_madd_epi16(part(0), _mm256_set1_epi16(256)),
                          _mm256_madd_epi16(part(64), _mm256_set1_epi16(1)));
}
inline Vec nibble_products(const Nibbles& w, const int8_t* planes) {
  return {_mm256_cvtepi32_ps(sum_nibbles(w, planes))};
}
inline Vec nibble_products(const Nibbles& w, const int8_t* planes, const int32_t* more) {
  return {_mm256_cvtepi32_ps(_mm256_add_epi32(sum_nibbles(w, planes), load256(more)))};
}
inline Vec spread(const float* factors, int64_t count) {
  const __m128 second = count > 1 ? _mm_broadcast_ss(factors + 1) : _mm_setzero_ps();
  return {_mm256_insertf128_ps(_mm256_castps128_ps256(_mm_broadcast_ss(factors)), second, 1)};
}

struct Bytes {
  __m256i first, second;
};
inline Bytes load_bytes(const int8_t* w) {
  return {_mm256_cvtepi8_epi16(load128(w)), _mm256_cvtepi8_epi16(load128(w + 16))};
}
inline Vec byte_products(const Bytes& w, const int16_t* x) {
  return {_mm256_cvtepi32_ps(_mm256_add_epi32(_mm256_madd_epi16(w.first, load256(x)),
                                              _mm256_madd_epi16(w.second, load256(x + 16))))};
}

inline constexpr int kCodeSide = 1;

// The table's lower and upper bytes.
struct CodeTable16 {
  __m256i lower, upper;
  explicit CodeTable16(const int16_t* table) {
    uint8_t bytes[2][16];
    for (int i = 0; i < 16; ++i) {
      bytes[0][i] = static_cast<uint8_t>(table[i]);
      bytes[1][i] = static_cast<uint8_t>(table[i] >> 8);
    }
    lower = _mm256_broadcastsi128_si256(load128(bytes[0]));
    upper = _mm256_broadcastsi128_si256(load128(bytes[1]));
  }
};
struct Codes {
  __m256i words[4];
};
inline Codes load_codes(const CodeTable16& table, const uint8_t* codes, int64_t) {
  const __m256i both = load256(codes), four = _mm256_set1_epi8(15);
  Codes w;
  for (int i = 0; i < 2; ++i) {
    const __m256i nibbles = _mm256_and_si256(i == 0 ? both : _mm256_srli_epi16(both, 4), four);
    const __m256i lower = _mm256_shuffle_epi8(table.lower, nibbles);
    const __m256i upper = _mm256_shuffle_epi8(table.upper, nibbles);
    w.words[2 * i] = _mm256_unpacklo_epi8(lower, upper);
    w.words[2 * i + 1] = _mm256_unpackhi_epi8(lower, upper);
  }
  return w;
}
inline Vec code_products(const Codes& w, const int16_t* x) {
  const auto part = [&](int i) { return _mm256_madd_epi16(w.words[i], load256(x + 16 * i)); };
  return {_mm256_cvtepi32_ps(
      _mm256_add_epi32(_mm256_add_epi32(part(0), part(1)), _mm256_add_epi32(part(2), part(3))))};
}
inline Vec spread_codes(const float* factor, int64_t) { return set1(*factor); }
// Of the low nibbles those of each half's first eight bytes, those of its others; the same of the high ones.
inline void put_codes(const int16_t* v, int16_t* x) {
  for (int i = 0; i < 64; ++i) x[i] = v[(i % 16 / 8 * 16 + i / 16 % 2 * 8 + i % 8) * 2 + (i < 32 ? 1 : 0)];
}
inline Vec look_up_first(const float* table, const uint8_t* codes, int64_t count) {
  if (count >= 8) return look_up_bytes(table, codes);
  uint8_t part[8] = {};
  std::memcpy(part, codes, static_cast<size_t>(count));
  return look_up_bytes(table, part);
}

template <int64_t kBytes, bool kTwo>
inline void load_factors(const uint8_t* block, int64_t count, float* first, float* second) {
  for (int64_t i = 0; i < count; ++i, block += kBytes) {
    f16 half[2];
    std::memcpy(half, block, kTwo ? 4 : 2);
    first[i] = to_float(half[0]);
    if (kTwo) second[i] = to_float(half[1]);
  }
}

inline Vec sum_each(const Vec* v) {
  __m256 two[4], four[2];
  for (int i = 0; i < 4; ++i) two[i] = _mm256_hadd_ps(v[2 * i].v, v[2 * i + 1].v);
  for (int i = 0; i < 2; ++i) four[i] = _mm256_hadd_ps(two[2 * i], two[2 * i + 1]);
  return {_mm256_add_ps(_mm256_permute2f128_ps(four[0], four[1], 0x20),
                        _mm256_permute2f128_ps(four[0], four[1], 0x31))};
}
