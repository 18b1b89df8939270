// Twelve independent chains of fused multiply-adds: as many as keep two units of latency 5 busy, and few enough for
// sixteen registers.
inline void fma_chains(int64_t rounds, float* out) {
  constexpr int kChains = 12;
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
inline constexpr double kRoundFlops = 12. * 2 * kLanes;

// Adds up floats that lie one after another, `count` a multiple of 16 kLanes: its halves side by side, each asked for
// 1 KiB ahead, which is how a core reads most.
inline float read_sum(const float* from, int64_t count) {
  constexpr int64_t kAhead = 256, kLine = 16;
  Vec s[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) s[i] = zero();
  for (int64_t at = 0; at < count / 2; at += 8 * kLanes)
    for (int half = 0; half < 2; ++half) {
      const float* const p = from + half * (count / 2) + at;
      for (int64_t i = 0; i < 8 * kLanes; i += kLine) __builtin_prefetch(p + i + kAhead);
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) s[i] = add(s[i], load(p + i * kLanes));
    }
  Vec total = zero();
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) total = add(total, s[i]);
  return sum(total);
}

// Adds 1 to each of them.
inline void update(float* at, int64_t count) {
  const Vec one = set1(1);
  for (const float* const end = at + count; at != end; at += 8 * kLanes)
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) store(at + i * kLanes, add(load(at + i * kLanes), one));
}
