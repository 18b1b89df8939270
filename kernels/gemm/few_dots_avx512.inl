// For few_ints_avx512.inl, of AVX-512BW alone. The bytes are nibbles beside signed ones: no sum of two leaves
// 16 bits.
inline __m512i dot_words(__m512i sum, __m512i a, __m512i b) {
  return _mm512_add_epi32(sum, _mm512_madd_epi16(a, b));
}
inline __m512i dot_bytes(__m512i sum, __m512i nibbles, __m512i bytes) {
  return dot_words(sum, _mm512_maddubs_epi16(nibbles, bytes), _mm512_set1_epi16(1));
}
