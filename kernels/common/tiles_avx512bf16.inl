// Products by vdpbf16ps (Intel SDM, VDPBF16PS) of the operands that tiles have. An element is one chain of
// multiply-adds over all its terms: pair after pair, of each the second term first; subnormals count as 0, of
// the sums too.

// Nothing to ask for.
struct TileRegisters {
  TileRegisters() {}
};

// Rows of sums held in registers, two vectors each: with a pair of both and one of x they are 19 of 32.
inline constexpr int kChainRows = 8;

// c[kChainRows, kCols * 16] (+)= x w, from row `row` of x. `step` is the panel's first.
template <int kCols>
inline void chains(const TileRows* x, int64_t parts, int64_t row, const char* step, float* c,
                   int64_t stride_c, bool first) {
  Vec sum[kChainRows][kCols];
#pragma GCC unroll 8
  for (int i = 0; i < kChainRows; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < kCols; ++j)
      sum[i][j] = first ? avx512::zero() : load(c + i * stride_c + j * kTileSide);
  for (int64_t p = 0; p < parts; ++p) {
    const int64_t stride = x[p].stride;
    const char* a = x[p].data + row * stride;
    for (int64_t s = 0; s < x[p].steps; ++s, step += kStepBytes)
      for (int64_t pair = 0; pair < kTileSide; ++pair, a += 4) {
        __m512bh w[kCols];
#pragma GCC unroll 2
        for (int j = 0; j < kCols; ++j) w[j] = (__m512bh)_mm512_load_si512(step + j * 1024 + pair * 64);
#pragma GCC unroll 8
        for (int i = 0; i < kChainRows; ++i) {
          int32_t terms;
          std::memcpy(&terms, a + i * stride, sizeof terms);
#pragma GCC unroll 2
          for (int j = 0; j < kCols; ++j)
            sum[i][j].v = _mm512_dpbf16_ps(sum[i][j].v, (__m512bh)_mm512_set1_epi32(terms), w[j]);
        }
      }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kChainRows; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < kCols; ++j) store(c + i * stride_c + j * kTileSide, sum[i][j]);
}

// Up to 32 rows and columns, as tiles have them: whole groups of rows, which reach no further than a tile.
template <Rows = Rows::again>
inline void multiply(const TileRows* x, int64_t parts, const char* step, int64_t rows, int64_t cols, float* c,
                     int64_t stride_c, bool first) {
  for (int64_t r = 0; r < at_most(rows, 2 * kTileSide); r += kChainRows)
    cols > kTileSide ? chains<2>(x, parts, r, step, c + r * stride_c, stride_c, first)
                     : chains<1>(x, parts, r, step, c + r * stride_c, stride_c, first);
}
