// For few_ints_avx512.inl, of AVX512-VNNI.
inline __m512i dot_words(__m512i sum, __m512i a, __m512i b) { return _mm512_dpwssd_epi32(sum, a, b); }
inline __m512i dot_bytes(__m512i sum, __m512i nibbles, __m512i bytes) {
  return _mm512_dpbusd_epi32(sum, nibbles, bytes);
}
