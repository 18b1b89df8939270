// Sixteen lanes of fp32.
struct Vec {
  __m512 v;
};
inline constexpr int kLanes = 16;
inline Vec zero() { return {_mm512_setzero_ps()}; }
inline Vec set1(float f) { return {_mm512_set1_ps(f)}; }
inline __m512 widen(__m256i half) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}
inline Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline Vec load(const bf16* p) { return {widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))}; }
// Round to nearest, ties to even; NaN keeps its upper bits and is made quiet. (The bf16 instructions are an
// ISA of their own and flush subnormals.)
inline __m512i bf16_bits(Vec a) {
  const __m512i u = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  const __m512i rounded =
      _mm512_srli_epi32(_mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
  const __m512i quiet = _mm512_or_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(0x40));
  return _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q), quiet);
}
inline void store(float* p, Vec a) { _mm512_storeu_ps(p, a.v); }
inline void store(bf16* p, Vec a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(bf16_bits(a)));
}
inline __mmask16 first(int64_t n) {
  return n >= 16 ? 0xffff : static_cast<__mmask16>((1u << (n > 0 ? n : 0)) - 1);
}
inline Vec load_part(const float* p, int64_t n) { return {_mm512_maskz_loadu_ps(first(n), p)}; }
inline Vec load_part(const bf16* p, int64_t n) { return {widen(_mm256_maskz_loadu_epi16(first(n), p))}; }
inline void store_part(float* p, Vec a, int64_t n) { _mm512_mask_storeu_ps(p, first(n), a.v); }
inline void store_part(bf16* p, Vec a, int64_t n) {
  _mm256_mask_storeu_epi16(p, first(n), _mm512_cvtepi32_epi16(bf16_bits(a)));
}
inline Vec add(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Vec sub(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Vec mul(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Vec div(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }
inline Vec sqrt(Vec a) { return {_mm512_sqrt_ps(a.v)}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Vec round_bf16(Vec a) { return {_mm512_castsi512_ps(_mm512_slli_epi32(bf16_bits(a), 16))}; }
inline Vec select_range(Vec a, int64_t begin, int64_t end, Vec b) {
  const __mmask16 inside = static_cast<__mmask16>(first(end) & ~first(begin));
  return {_mm512_mask_mov_ps(b.v, inside, a.v)};
}
inline Vec and_mask(Vec a, const uint32_t* mask) {
  return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(a.v), _mm512_loadu_si512(mask)))};
}
inline __m256 upper(__m512 v) { return _mm512_extractf32x8_ps(v, 1); }
inline float sum(Vec a) {
  const __m256 o = _mm256_add_ps(_mm512_castps512_ps256(a.v), upper(a.v));
  const __m128 h = _mm_add_ps(_mm256_castps256_ps128(o), _mm256_extractf128_ps(o, 1));
  const __m128 q = _mm_add_ps(h, _mm_movehl_ps(h, h));
  return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}
inline float max_lane(Vec a) {
  const __m256 o = _mm256_max_ps(_mm512_castps512_ps256(a.v), upper(a.v));
  const __m128 h = _mm_max_ps(_mm256_castps256_ps128(o), _mm256_extractf128_ps(o, 1));
  const __m128 q = _mm_max_ps(h, _mm_movehl_ps(h, h));
  return _mm_cvtss_f32(_mm_max_ss(q, _mm_movehdup_ps(q)));
}
inline Vec times_exp2(Vec a, Vec n) { return {_mm512_scalef_ps(a.v, n.v)}; }
inline Vec round_even(Vec a) {
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
// times_exp2 takes any whole number: no range to keep to.
struct WholeAndRest {
  Vec whole, rest;
};
inline WholeAndRest whole_and_rest(Vec x) {
  const Vec rest{_mm512_reduce_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
  return {sub(x, rest), rest};
}
// Codes of four bits: each lane takes the table's entry that its low bits name.
inline constexpr int kTable16 = 1;  // vectors that hold 16 floats
inline Vec look_up(const Vec* table, __m512i codes) { return {_mm512_permutexvar_ps(codes, table->v)}; }
// Elements i .. i+15 (i a multiple of 16) of codes packed two to a byte, the first in the high nibble.
inline Vec look_up_pairs(const Vec* table, const uint8_t* packed, int64_t i) {
  const __m128i eight = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(packed + (i >> 1)));
  const __m512i half = _mm512_set_epi32(1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0);
  const __m512i shift = _mm512_set_epi32(24, 28, 16, 20, 8, 12, 0, 4, 24, 28, 16, 20, 8, 12, 0, 4);
  return look_up(table,
                 _mm512_srlv_epi32(_mm512_permutexvar_epi32(half, _mm512_castsi128_si512(eight)), shift));
}
// The low or the high nibbles of 16 bytes.
inline Vec look_up_nibbles(const Vec* table, const uint8_t* bytes, bool high) {
  const __m512i wide = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
  return look_up(table, high ? _mm512_srli_epi32(wide, 4) : wide);
}
inline Vec load(const f16* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
inline Vec load(const int8_t* p) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
}
inline float to_float(f16 h) { return _cvtsh_ss(h.bits); }
// 16 x 16, in place.
inline void transpose(Vec* r) {
  __m512 t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_ps(r[2 * i].v, r[2 * i + 1].v);
    t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i].v, r[2 * i + 1].v);
  }
  __m512 u[16];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    u[4 * i] = _mm512_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
    u[4 * i + 1] = _mm512_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
    u[4 * i + 2] = _mm512_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
    u[4 * i + 3] = _mm512_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_f32x4(u[i], u[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_f32x4(u[i], u[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_f32x4(u[i + 8], u[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_f32x4(u[i + 8], u[i + 12], 0xdd);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    r[i].v = _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88);
    r[i + 8].v = _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd);
    r[i + 4].v = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 12].v = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0xdd);
  }
}
// Codes of eight bits: the table's entries at kLanes of them.
inline Vec look_up_bytes(const float* table, const uint8_t* codes) {
  const __m512i wide = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
  return {_mm512_i32gather_ps(wide, table, 4)};
}
// The codes of kLanes values, none of them NaN.
inline void nearest_codes(const CodeTable& t, Vec x, uint8_t* codes) {
  const __m512i bits = _mm512_castps_si512(x.v), below = _mm512_set1_epi32(CodeTable::kBelow);
  const __m512i size = _mm512_srli_epi32(_mm512_slli_epi32(bits, 1), 17);
  const __m512i clamped =
      _mm512_min_epi32(_mm512_max_epi32(size, below), _mm512_set1_epi32(CodeTable::kLast));
  const __m512i from = _mm512_sub_epi32(clamped, below);
  const __m512i bin =
      _mm512_mask_add_epi32(from, _mm512_movepi32_mask(bits), from, _mm512_set1_epi32(CodeTable::kBins));
  const __m512i slot = _mm512_and_si512(_mm512_i32gather_epi32(bin, t.slot, 2), _mm512_set1_epi32(0xffff));
  const __mmask16 up = _mm512_cmp_ps_mask(x.v, _mm512_i32gather_ps(slot, t.next, 4), _CMP_GE_OQ);
  const __m512i code = _mm512_mask_add_epi32(slot, up, slot, _mm512_set1_epi32(1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(codes), _mm512_cvtepi32_epi8(code));
}
// a where `test` is neither NaN nor infinite; b elsewhere.
inline Vec select_finite(Vec test, Vec a, Vec b) {
  const __m512i exponent = _mm512_set1_epi32(0x7f800000);
  const __mmask16 without =
      _mm512_cmpeq_epi32_mask(_mm512_and_si512(_mm512_castps_si512(test.v), exponent), exponent);
  return {_mm512_mask_mov_ps(a.v, without, b.v)};
}
#include "kernels/common/simd_math.inl"
