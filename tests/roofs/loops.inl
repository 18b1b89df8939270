// The loop of products on vectors (kernels/gemm/gemm_cpu.inl): rows of x by a panel of w.
inline constexpr int kLoopRows = kLanes == 16 ? 8 : 6, kLoopVecs = kLanes == 16 ? 3 : 2;
inline constexpr int64_t kLoopTerms = 192, kLoopStride = kLoopTerms + 16;
inline constexpr double kLoopFlops = 2. * kLoopRows * kLoopVecs * kLanes;  // of a term

// `rows` rows of kLoopTerms terms, kLoopStride apart, by a panel. The sums go to `out`, one group's over
// another's.
inline void loop_rows(const float* x, int64_t rows, const float* panel, float* out) {
  for (int64_t r = 0; r + kLoopRows <= rows; r += kLoopRows, x += kLoopRows * kLoopStride) {
    Vec sum[kLoopRows][kLoopVecs];
#pragma GCC unroll 8
    for (int i = 0; i < kLoopRows; ++i)
#pragma GCC unroll 3
      for (int j = 0; j < kLoopVecs; ++j) sum[i][j] = zero();
    const float* w = panel;
    for (int64_t k = 0; k < kLoopTerms; ++k, w += kLoopVecs * kLanes) {
      Vec part[kLoopVecs];
#pragma GCC unroll 3
      for (int j = 0; j < kLoopVecs; ++j) part[j] = load(w + j * kLanes);
#pragma GCC unroll 8
      for (int i = 0; i < kLoopRows; ++i) {
        const Vec term = set1(x[i * kLoopStride + k]);
#pragma GCC unroll 3
        for (int j = 0; j < kLoopVecs; ++j) sum[i][j] = fma(term, part[j], sum[i][j]);
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < kLoopRows; ++i)
#pragma GCC unroll 3
      for (int j = 0; j < kLoopVecs; ++j) store(out + (i * kLoopVecs + j) * kLanes, sum[i][j]);
  }
}

// Twelve sums of products of four registers that are loaded once: `terms` of each.
inline void loop_registers(const float* values, int64_t terms, float* out) {
  Vec sum[12];
#pragma GCC unroll 12
  for (int i = 0; i < 12; ++i) sum[i] = load(values + (i + 4) * kLanes);
  const Vec x[2] = {load(values), load(values + kLanes)},
            w[2] = {load(values + 2 * kLanes), load(values + 3 * kLanes)};
  for (int64_t k = 0; k < terms; ++k)
#pragma GCC unroll 12
    for (int i = 0; i < 12; ++i) sum[i] = fma(x[i % 2], w[i / 2 % 2], sum[i]);
#pragma GCC unroll 12
  for (int i = 0; i < 12; ++i) store(out + i * kLanes, sum[i]);
}
inline constexpr double kRegisterFlops = 12. * 2 * kLanes;  // of a term
