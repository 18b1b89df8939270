// Twelve independent chains of fused multiply-adds: as many as keep two units of latency 5 busy, and few
// enough for sixteen registers.
inline float peak_chains(int64_t rounds, float seed) {
  Vec s[12];
  for (int i = 0; i < 12; ++i) s[i] = set1(seed + static_cast<float>(i));
  const Vec a = set1(.5f * seed), b = set1(.25f * seed);
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 12
    for (int i = 0; i < 12; ++i) s[i] = fma(s[i], a, b);
  }
  Vec total = zero();
  for (int i = 0; i < 12; ++i) total = add(total, s[i]);
  return sum(total);
}
inline double peak_flops_per_round() { return 12. * 2 * kLanes; }
