// The multiply-adds a core can make when nothing but registers is touched.
inline void fma_chains(int64_t rounds, float* out) {
  constexpr int kChains = 12;  // latency 4 on two ports, and some to spare
  Vec sum[kChains];
#pragma GCC unroll 12
  for (int i = 0; i < kChains; ++i) sum[i] = set1(static_cast<float>(i));
  const Vec a = set1(out[0]), b = set1(out[1]);
  for (int64_t r = 0; r < rounds; ++r)
#pragma GCC unroll 12
    for (int i = 0; i < kChains; ++i) sum[i] = fma(sum[i], a, b);
#pragma GCC unroll 12
  for (int i = 0; i < kChains; ++i) store(out + i * kLanes, sum[i]);
}
inline double flops_of_round() { return 12.0 * kLanes * 2; }
