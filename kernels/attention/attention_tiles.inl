// Small matrix products out of packed fp32 tiles, and the packing. The moving side of attention (keys in the
// forward pass and for dQ, queries for dK and dV) is packed by rows; the side that a task keeps is packed
// transposed, so that lanes run over it and no tile is transposed in the inner loop.

enum class Sum { assign, add, scale_and_add };

// Registers: kMr rows of kNv vectors.
inline constexpr int kAttentionMr = kLanes == 1 ? 4 : 6;
inline constexpr int kAttentionNv = kLanes == 16 ? 4 : kLanes == 8 ? 2 : 4;

// C[kM, kN vectors] from A[kM, depth] and B[depth, ..]. kAcross: A is stored [depth, kM]. scale_and_add: C is
// multiplied by factor[row] first.
template <int kM, int kN, bool kAcross, Sum kSum>
inline void attention_micro(int64_t depth, const float* a, int64_t lda, const float* b, int64_t ldb, float* c,
                            int64_t ldc, const float* factor) {
  Vec s[kM][kN];
#pragma GCC unroll 8
  for (int i = 0; i < kM; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < kN; ++j) {
      if (kSum == Sum::assign) s[i][j] = zero();
      if (kSum == Sum::add) s[i][j] = load(c + i * ldc + j * kLanes);
      if (kSum == Sum::scale_and_add) s[i][j] = mul(load(c + i * ldc + j * kLanes), set1(factor[i]));
    }
  for (int64_t k = 0; k < depth; ++k) {
    Vec row[kN];
#pragma GCC unroll 4
    for (int j = 0; j < kN; ++j) row[j] = load(b + k * ldb + j * kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < kM; ++i) {
      const Vec x = set1(kAcross ? a[k * lda + i] : a[i * lda + k]);
#pragma GCC unroll 4
      for (int j = 0; j < kN; ++j) s[i][j] = fma(x, row[j], s[i][j]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kM; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < kN; ++j) store(c + i * ldc + j * kLanes, s[i][j]);
}

template <int kN, bool kAcross, Sum kSum>
inline void attention_panel(int64_t rows, int64_t depth, const float* a, int64_t lda, const float* b,
                            int64_t ldb, float* c, int64_t ldc, const float* factor) {
  const int64_t step = kAcross ? 1 : lda;
  int64_t i = 0;
  const auto at = [&](int64_t r) { return kSum == Sum::scale_and_add ? factor + r : nullptr; };
  for (; i + kAttentionMr <= rows; i += kAttentionMr)
    attention_micro<kAttentionMr, kN, kAcross, kSum>(depth, a + i * step, lda, b, ldb, c + i * ldc, ldc, at(i));
  if (i + 4 <= rows && kAttentionMr > 4) {
    attention_micro<4, kN, kAcross, kSum>(depth, a + i * step, lda, b, ldb, c + i * ldc, ldc, at(i));
    i += 4;
  }
  for (; i < rows; ++i)
    attention_micro<1, kN, kAcross, kSum>(depth, a + i * step, lda, b, ldb, c + i * ldc, ldc, at(i));
}

// C[rows, cols] = (+=) A[rows, depth] B[depth, cols]; cols is a multiple of kLanes.
template <bool kAcross, Sum kSum>
inline void attention_product(int64_t rows, int64_t cols, int64_t depth, const float* a, int64_t lda,
                              const float* b, int64_t ldb, float* c, int64_t ldc,
                              const float* factor = nullptr) {
  int64_t j = 0;
  for (; j + kAttentionNv * kLanes <= cols; j += kAttentionNv * kLanes)
    attention_panel<kAttentionNv, kAcross, kSum>(rows, depth, a, lda, b + j, ldb, c + j, ldc, factor);
  for (; j + 2 * kLanes <= cols; j += 2 * kLanes)
    attention_panel<2, kAcross, kSum>(rows, depth, a, lda, b + j, ldb, c + j, ldc, factor);
  if (j < cols) attention_panel<1, kAcross, kSum>(rows, depth, a, lda, b + j, ldb, c + j, ldc, factor);
}

inline int64_t attention_lanes(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

// Rows of one head -> [rows, padded], zeros behind `dim`.
template <class T>
inline void attention_pack(const ConstMat& m, int64_t row, int64_t rows, int64_t col, int64_t dim,
                           int64_t padded, float* out) {
  for (int64_t i = 0; i < rows; ++i) {
    const T* src = m.row<T>(row + i) + col;
    float* dst = out + i * padded;
    int64_t j = 0;
    for (; j + kLanes <= dim; j += kLanes) store(dst + j, load(src + j));
    if (j < dim) store_part(dst + j, load_part(src + j, dim - j), dim - j);
    for (j = dim; j < padded; ++j) dst[j] = 0;
  }
}

// Rows of one head -> [dim, kTile], zeros behind `rows`.
template <class T>
inline void attention_pack_across(const ConstMat& m, int64_t row, int64_t rows, int64_t col, int64_t dim,
                                  float* out) {
  using attention::kTile;
  int64_t i = 0;
  for (; i + kLanes <= rows; i += kLanes) {
    int64_t j = 0;
    for (; j + kLanes <= dim; j += kLanes) {
      Vec block[kLanes];
      for (int r = 0; r < kLanes; ++r) block[r] = load(m.row<T>(row + i + r) + col + j);
      transpose(block);
      for (int r = 0; r < kLanes; ++r) store(out + (j + r) * kTile + i, block[r]);
    }
    for (; j < dim; ++j)
      for (int r = 0; r < kLanes; ++r)
        out[j * kTile + i + r] = static_cast<float>(m.row<T>(row + i + r)[col + j]);
  }
  for (; i < kTile; ++i)
    for (int64_t j = 0; j < dim; ++j)
      out[j * kTile + i] = i < rows ? static_cast<float>(m.row<T>(row + i)[col + j]) : 0.f;
}

// rows x dim of a tile, times `scale`, rounded into the columns of one head.
template <class T>
inline void attention_unpack(const float* tile, int64_t padded, const Mat& m, int64_t row, int64_t rows,
                             int64_t col, int64_t dim, float scale) {
  for (int64_t i = 0; i < rows; ++i) {
    T* dst = m.row<T>(row + i) + col;
    const float* src = tile + i * padded;
    int64_t j = 0;
    for (; j + kLanes <= dim; j += kLanes) store(dst + j, mul(load(src + j), set1(scale)));
    if (j < dim) store_part(dst + j, mul(load_part(src + j, dim - j), set1(scale)), dim - j);
  }
}
