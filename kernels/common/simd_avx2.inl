// Eight lanes of fp32.
struct Vec {
  __m256 v;
};
inline constexpr int kLanes = 8;
inline Vec zero() { return {_mm256_setzero_ps()}; }
inline Vec set1(float f) { return {_mm256_set1_ps(f)}; }
inline Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
inline Vec load(const bf16* p) {
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(wide, 16))};
}
inline void store(float* p, Vec a) { _mm256_storeu_ps(p, a.v); }
// Round to nearest, ties to even; NaN keeps its upper bits and is made quiet.
inline __m256i bf16_bits(Vec a) {
  const __m256i u = _mm256_castps_si256(a.v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  const __m256i rounded =
      _mm256_srli_epi32(_mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
  const __m256i quiet = _mm256_or_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(0x40));
  const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q));
  return _mm256_blendv_epi8(rounded, quiet, is_nan);
}
inline void store(bf16* p, Vec a) {
  const __m256i b = bf16_bits(a);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(b, b), 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
}
template <class T>
inline Vec load_part(const T* p, int64_t n) {
  T t[kLanes] = {};
  for (int64_t i = 0; i < kLanes && i < n; ++i) t[i] = p[i];
  return load(t);
}
template <class T>
inline void store_part(T* p, Vec a, int64_t n) {
  T t[kLanes];
  store(t, a);
  for (int64_t i = 0; i < kLanes && i < n; ++i) p[i] = t[i];
}
inline Vec add(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
inline Vec sub(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline Vec mul(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline Vec div(Vec a, Vec b) { return {_mm256_div_ps(a.v, b.v)}; }
inline Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }
inline Vec min(Vec a, Vec b) { return {_mm256_min_ps(a.v, b.v)}; }
inline Vec sqrt(Vec a) { return {_mm256_sqrt_ps(a.v)}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline Vec round_bf16(Vec a) { return {_mm256_castsi256_ps(_mm256_slli_epi32(bf16_bits(a), 16))}; }
inline Vec select_range(Vec a, int64_t begin, int64_t end, Vec b) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const auto clamp = [](int64_t i) { return static_cast<int>(i < 0 ? 0 : i > kLanes ? kLanes : i); };
  const __m256i below = _mm256_cmpgt_epi32(_mm256_set1_epi32(clamp(begin)), lane);
  const __m256i inside = _mm256_andnot_si256(below, _mm256_cmpgt_epi32(_mm256_set1_epi32(clamp(end)), lane));
  return {_mm256_blendv_ps(b.v, a.v, _mm256_castsi256_ps(inside))};
}
inline Vec and_mask(Vec a, const uint32_t* mask) {
  return {_mm256_and_ps(a.v, _mm256_loadu_ps(reinterpret_cast<const float*>(mask)))};
}
inline float sum(Vec a) {
  const __m128 h = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  const __m128 q = _mm_add_ps(h, _mm_movehl_ps(h, h));
  return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}
inline float max_lane(Vec a) {
  const __m128 h = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  const __m128 q = _mm_max_ps(h, _mm_movehl_ps(h, h));
  return _mm_cvtss_f32(_mm_max_ss(q, _mm_movehdup_ps(q)));
}
inline Vec times_exp2(Vec a, Vec n) {
  const __m256i i = _mm256_cvtps_epi32(n.v);
  return mul(a, {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(i, _mm256_set1_epi32(127)), 23))});
}
inline Vec round_even(Vec a) { return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
struct WholeAndRest {
  Vec whole, rest;
};
inline WholeAndRest whole_and_rest(Vec x) {
  const Vec clamped = min(set1(127.f), max(set1(-126.f), x)), whole = round_even(clamped);
  return {whole, sub(clamped, whole)};
}
// Codes of four bits: each lane takes the table's entry that its low bits name.
inline constexpr int kTable16 = 2;  // vectors that hold 16 floats
inline Vec look_up(const Vec* table, __m256i codes) {
  const __m256 low = _mm256_permutevar8x32_ps(table[0].v, codes);
  const __m256 high = _mm256_permutevar8x32_ps(table[1].v, codes);
  return {_mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(codes, 28)))};
}
// Elements i .. i+7 (i a multiple of 8) of codes packed two to a byte, the first in the high nibble.
inline Vec look_up_pairs(const Vec* table, const uint8_t* packed, int64_t i) {
  int32_t four;
  std::memcpy(&four, packed + (i >> 1), 4);
  const __m256i shift = _mm256_set_epi32(24, 28, 16, 20, 8, 12, 0, 4);
  return look_up(table, _mm256_srlv_epi32(_mm256_set1_epi32(four), shift));
}
// The low or the high nibbles of 8 bytes.
inline Vec look_up_nibbles(const Vec* table, const uint8_t* bytes, bool high) {
  const __m256i wide = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes)));
  return look_up(table, high ? _mm256_srli_epi32(wide, 4) : wide);
}
inline Vec load(const f16* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
inline Vec load(const int8_t* p) {
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))))};
}
inline float to_float(f16 h) { return _cvtsh_ss(h.bits); }
// 8 x 8, in place.
inline void transpose(Vec* r) {
  __m256 t[8], u[8];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    t[2 * i] = _mm256_unpacklo_ps(r[2 * i].v, r[2 * i + 1].v);
    t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i].v, r[2 * i + 1].v);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    u[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
    u[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
    u[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
    u[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    r[i].v = _mm256_permute2f128_ps(u[i], u[i + 4], 0x20);
    r[i + 4].v = _mm256_permute2f128_ps(u[i], u[i + 4], 0x31);
  }
}
// Codes of eight bits: the table's entries at kLanes of them.
inline Vec look_up_bytes(const float* table, const uint8_t* codes) {
  const __m256i wide = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes)));
  return {_mm256_i32gather_ps(table, wide, 4)};
}
// The codes of kLanes values, none of them NaN.
inline void nearest_codes(const CodeTable& t, Vec x, uint8_t* codes) {
  const __m256i bits = _mm256_castps_si256(x.v), below = _mm256_set1_epi32(CodeTable::kBelow);
  const __m256i size = _mm256_srli_epi32(_mm256_slli_epi32(bits, 1), 17);
  const __m256i clamped =
      _mm256_min_epi32(_mm256_max_epi32(size, below), _mm256_set1_epi32(CodeTable::kLast));
  const __m256i other = _mm256_and_si256(_mm256_srai_epi32(bits, 31), _mm256_set1_epi32(CodeTable::kBins));
  const __m256i bin = _mm256_add_epi32(_mm256_sub_epi32(clamped, below), other);
  const __m256i slot = _mm256_and_si256(_mm256_i32gather_epi32(reinterpret_cast<const int*>(t.slot), bin, 2),
                                        _mm256_set1_epi32(0xffff));
  const __m256 up = _mm256_cmp_ps(x.v, _mm256_i32gather_ps(t.next, slot, 4), _CMP_GE_OQ);
  const __m256i code =
      _mm256_and_si256(_mm256_sub_epi32(slot, _mm256_castps_si256(up)), _mm256_set1_epi32(255));
  const __m128i half = _mm_packus_epi32(_mm256_castsi256_si128(code), _mm256_extracti128_si256(code, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(codes), _mm_packus_epi16(half, half));
}
// a where `test` is neither NaN nor infinite; b elsewhere.
inline Vec select_finite(Vec test, Vec a, Vec b) {
  const __m256i exponent = _mm256_set1_epi32(0x7f800000);
  const __m256i without =
      _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_castps_si256(test.v), exponent), exponent);
  return {_mm256_blendv_ps(a.v, b.v, _mm256_castsi256_ps(without))};
}
#include "kernels/common/simd_math.inl"
