#include "kernels/common/panels_bf16.inl"
#include "kernels/common/tiles_avx512bf16.inl"
#include "tests/kernels/emulated_bf16_bodies.inl"

// c[256] += a b, pair by pair; of the last 32 words of c bf16 is made from those before them.
inline void one_product(void* c, const void* a, const void* b) {
  float* const sum = static_cast<float*>(c);
  for (int i = 0; i < 256; i += 16) {
    const __m512i x = _mm512_load_si512(static_cast<const char*>(a) + 4 * i);
    const __m512i y = _mm512_load_si512(static_cast<const char*>(b) + 4 * i);
    _mm512_store_ps(sum + i, _mm512_dpbf16_ps(_mm512_load_ps(sum + i), (__m512bh)x, (__m512bh)y));
  }
  const __m512 low = _mm512_load_ps(static_cast<const float*>(a)), high = _mm512_load_ps(sum);
  _mm512_store_si512(sum + 224, (__m512i)_mm512_cvtne2ps_pbh(high, low));
  _mm256_store_si256(reinterpret_cast<__m256i*>(sum + 240), (__m256i)_mm512_cvtneps_pbh(low));
}
