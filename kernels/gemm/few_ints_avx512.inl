// Products of integers for few_ints.inl, on sixteen lanes: what few_ints_scalar.inl says. dot_bytes and
// dot_words add to each lane the products of its bytes and words, exactly.

inline constexpr int kSide = 4;

inline __m512i load512(const void* p) { return _mm512_loadu_si512(p); }

inline uint32_t greatest_bits(const bf16* x, int64_t n) {
  __m512i top = _mm512_setzero_si512();
  for (int64_t i = 0; i < n; i += 32)
    top = _mm512_max_epu16(top, _mm512_and_si512(load512(x + i), _mm512_set1_epi16(0x7fff)));
  const __m256i half = _mm256_max_epu16(_mm512_castsi512_si256(top), _mm512_extracti64x4_epi64(top, 1));
  const __m128i eight = _mm_max_epu16(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
  const __m128i least = _mm_minpos_epu16(_mm_xor_si128(eight, _mm_set1_epi16(-1)));
  return 0xffff & ~static_cast<uint32_t>(_mm_cvtsi128_si32(least));
}
inline void round_ints(const bf16* x, int64_t n, float factor, int limit, int16_t* out) {
  for (int64_t i = 0; i < n; i += 16) {
    const __m512i whole = _mm512_cvtps_epi32(mul(load(x + i), set1(factor)).v);
    const __m512i within =
        _mm512_max_epi32(_mm512_min_epi32(whole, _mm512_set1_epi32(limit)), _mm512_set1_epi32(-limit));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), _mm512_cvtepi32_epi16(within));
  }
}

struct Nibbles {
  __m512i low, high;
};
template <int64_t kBytes>
inline Nibbles load_nibbles(const uint8_t* block, int64_t count) {
  __m512i codes;
  if constexpr (kBytes == 20) {  // five words of 32 bits: one that is no code, four that are
    const __m512i words = _mm512_setr_epi32(1, 2, 3, 4, 6, 7, 8, 9, 11, 12, 13, 14, 28, 29, 30, 31);
    if (count == 4)
      codes = _mm512_permutex2var_epi32(load512(block), words, load512(block + 16));
    else
      codes = _mm512_permutex2var_epi32(
          _mm512_maskz_loadu_epi32(static_cast<__mmask16>((1u << (5 * count)) - 1), block), words,
          _mm512_setzero_si512());
  } else {
    const auto at = [&](int64_t i) {
      return _mm_loadu_si128(reinterpret_cast<const __m128i*>(block + i * kBytes + kBytes - 16));
    };
    codes = _mm512_zextsi128_si512(at(0));
    if (count > 1) codes = _mm512_inserti32x4(codes, at(1), 1);
    if (count > 2) codes = _mm512_inserti32x4(codes, at(2), 2);
    if (count > 3) codes = _mm512_inserti32x4(codes, at(3), 3);
  }
  const __m512i four = _mm512_set1_epi8(15);
  return {_mm512_and_si512(codes, four), _mm512_and_si512(_mm512_srli_epi16(codes, 4), four)};
}
inline __m512i sum_nibbles(const Nibbles& w, const int8_t* planes) {
  __m512i sum = dot_bytes(_mm512_setzero_si512(), w.low, load512(planes));
  sum = dot_bytes(sum, w.high, load512(planes + 64));
  sum = dot_bytes(_mm512_slli_epi32(sum, 8), w.low, load512(planes + 128));
  return dot_bytes(sum, w.high, load512(planes + 192));
}
inline Vec nibble_products(const Nibbles& w, const int8_t* planes) {
  return {_mm512_cvtepi32_ps(sum_nibbles(w, planes))};
}
inline Vec nibble_products(const Nibbles& w, const int8_t* planes, const int32_t* more) {
  return {_mm512_cvtepi32_ps(_mm512_add_epi32(sum_nibbles(w, planes), load512(more)))};
}
inline Vec spread(const float* factors, int64_t count) {
  const __m512i block = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
  const __m128 four = count == 4 ? _mm_loadu_ps(factors) : _mm_maskz_loadu_ps(first(count), factors);
  return {_mm512_permutexvar_ps(block, _mm512_castps128_ps512(four))};
}

struct Bytes {
  __m512i words;
};
inline Bytes load_bytes(const int8_t* w) {
  return {_mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(w)))};
}
inline Vec byte_products(const Bytes& w, const int16_t* x) {
  return {_mm512_cvtepi32_ps(_mm512_madd_epi16(w.words, load512(x)))};
}

inline constexpr int kCodeSide = 2;

// Twice the 16 entries: of a word that has two bytes' nibbles the lower five bits count.
struct CodeTable16 {
  __m512i twice;
  explicit CodeTable16(const int16_t* table)
      : twice(_mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(table)))) {}
};
struct Codes {
  __m512i words[4];
};
inline Codes load_codes(const CodeTable16& table, const uint8_t* codes, int64_t count) {
  const __m512i four =
      count == 2 ? load512(codes)
                 : _mm512_zextsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes)));
  return {{_mm512_permutexvar_epi16(four, table.twice),
           _mm512_permutexvar_epi16(_mm512_srli_epi16(four, 4), table.twice),
           _mm512_permutexvar_epi16(_mm512_srli_epi16(four, 8), table.twice),
           _mm512_permutexvar_epi16(_mm512_srli_epi16(four, 12), table.twice)}};
}
inline Vec code_products(const Codes& w, const int16_t* x) {
  __m512i sum = _mm512_madd_epi16(w.words[0], load512(x));
#pragma GCC unroll 4
  for (int i = 1; i < 4; ++i) sum = dot_words(sum, w.words[i], load512(x + 32 * i));
  return {_mm512_cvtepi32_ps(sum)};
}
inline Vec spread_codes(const float* factors, int64_t count) {
  const __m512 one = _mm512_set1_ps(*factors);
  return {count == 2 ? _mm512_mask_broadcastss_ps(one, 0xff00, _mm_load_ss(factors + 1))
                     : _mm512_maskz_mov_ps(0x00ff, one)};
}
// Word j of the i-th vector: of the nibbles at bit 4 * i of the codes' j-th word.
inline void put_codes(const int16_t* v, int16_t* x) {
  alignas(64) static constexpr auto kPlaces = [] {
    std::array<int16_t, 64> at{};
    for (int i = 0; i < 64; ++i) at[static_cast<size_t>(i)] = static_cast<int16_t>(i % 16 * 4 + (i / 16 ^ 1));
    return at;
  }();
  for (int i = 0; i < 2; ++i) {
    const __m512i two =
        _mm512_permutex2var_epi16(load512(v), load512(kPlaces.data() + 32 * i), load512(v + 32));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(x + 64 * i), _mm512_castsi512_si256(two));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(x + 64 * i + 32), _mm512_extracti64x4_epi64(two, 1));
  }
}
inline Vec look_up_first(const float* table, const uint8_t* codes, int64_t count) {
  const __m512i wide = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(first(count), codes));
  return {_mm512_i32gather_ps(wide, table, 4)};
}

// Sixteen blocks at a time are gathered out of loads that hold the numbers of some blocks each: without a way
// through memory, which the following loads would wait for.
template <int64_t kBytes, bool kTwo>
inline void load_factors(const uint8_t* block, int64_t count, float* first, float* second) {
  constexpr int kHeld = static_cast<int>((64 - (kTwo ? 4 : 2)) / kBytes + 1);
  alignas(64) int16_t word[32];
  for (int i = 0; i < 32; ++i) word[i] = static_cast<int16_t>(i % kHeld * (kBytes / 2) + (i < 16 ? 0 : 1));
  const __m512i words = load512(word);
  const auto put = [&](int64_t i, __m512i halves) {
    _mm512_storeu_ps(first + i, _mm512_cvtph_ps(_mm512_castsi512_si256(halves)));
    if (kTwo) _mm512_storeu_ps(second + i, _mm512_cvtph_ps(_mm512_extracti64x4_epi64(halves, 1)));
  };
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) {
    __m512i halves = _mm512_setzero_si512();
#pragma GCC unroll 8
    for (int j = 0; j < 16; j += kHeld) {
      const uint32_t some = ((1u << kHeld) - 1) << j;
      halves =
          _mm512_mask_permutexvar_epi16(halves, some | some << 16, words, load512(block + (i + j) * kBytes));
    }
    put(i, halves);
  }
  if (i == count) return;
  uint16_t rest[32] = {};
  for (int64_t j = 0; i + j < count; ++j) {
    std::memcpy(rest + j, block + (i + j) * kBytes, 2);
    if (kTwo) std::memcpy(rest + 16 + j, block + (i + j) * kBytes + 2, 2);
  }
  put(i, load512(rest));
}

// Halves of two vectors are added up side by side, and so on: at last lanes of a lane of four.
inline __m512 sum_halves(__m512 a, __m512 b) {
  return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
}
inline __m512 sum_lanes(__m512 a, __m512 b) {
  return _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
}
inline Vec sum_each(const Vec* v) {
  __m512 four[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {  // lane l of four: of v[i + 4 * l]
    const __m512 a = sum_halves(v[i].v, v[i + 4].v), b = sum_halves(v[i + 8].v, v[i + 12].v);
    four[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
  }
  const __m512 a = sum_lanes(four[0], four[1]), b = sum_lanes(four[2], four[3]);
  return {_mm512_add_ps(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee))};
}
