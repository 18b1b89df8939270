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

// Vectors of the blocks of columns that `vectors` are cut into: as even as they can be.
inline int64_t attention_width(int64_t vectors) {
  const int64_t blocks = (vectors + kAttentionNv - 1) / kAttentionNv;
  return (vectors + blocks - 1) / blocks;
}

template <int kM, bool kAcross, Sum kSum>
inline void attention_columns(int64_t vectors, int64_t depth, const float* a, int64_t lda, const float* b,
                              int64_t ldb, float* c, int64_t ldc, const float* factor) {
  if (vectors == 4) attention_micro<kM, 4, kAcross, kSum>(depth, a, lda, b, ldb, c, ldc, factor);
  if (vectors == 3) attention_micro<kM, 3, kAcross, kSum>(depth, a, lda, b, ldb, c, ldc, factor);
  if (vectors == 2) attention_micro<kM, 2, kAcross, kSum>(depth, a, lda, b, ldb, c, ldc, factor);
  if (vectors == 1) attention_micro<kM, 1, kAcross, kSum>(depth, a, lda, b, ldb, c, ldc, factor);
}

// f<rows>(first) over blocks of rows.
template <class F>
inline void attention_row_blocks(int64_t rows, const F& f) {
  int64_t i = 0;
  for (; i + kAttentionMr <= rows; i += kAttentionMr) f.template operator()<kAttentionMr>(i);
  if (kAttentionMr > 4 && i + 4 <= rows) {
    f.template operator()<4>(i);
    i += 4;
  }
  if (i + 2 <= rows) {
    f.template operator()<2>(i);
    i += 2;
  }
  if (i < rows) f.template operator()<1>(i);
}

// Which scores of a tile are seen: those of moving row r and lane c with r + first <= c <= r + last.
struct AttentionBand {
  int64_t first, last;
  bool cuts(int64_t rows, int64_t lanes) const { return rows - 1 + first > 0 || last < lanes - 1; }
  bool misses(int64_t row, int64_t lane) const { return lane + kLanes <= row + first || lane > row + last; }
  Vec keep(Vec x, int64_t row, int64_t lane, Vec otherwise) const {
    return select_range(x, row + first - lane, row + last + 1 - lane, otherwise);
  }
};

// The scores of a tile: c[rows, lanes] = a[rows, depth] b[depth, lanes]; vectors and rows out of the band are
// left as they are. a has rows of `lda`, b and c of kTile.
inline void attention_scores(const AttentionBand& band, int64_t rows, int64_t lanes, int64_t depth,
                             const float* a, int64_t lda, const float* b, float* c) {
  using attention::kTile;
  const int64_t width = attention_width(lanes / kLanes);
  for (int64_t j = 0; j < lanes / kLanes; j += width)
    attention_row_blocks(rows, [&]<int kM>(int64_t r) {
      const int64_t begin = std::max(j, std::max<int64_t>(0, r + band.first) / kLanes);
      const int64_t end = std::min({j + width, lanes / kLanes, (r + kM + band.last + kLanes - 1) / kLanes});
      if (begin < end)
        attention_columns<kM, false, Sum::assign>(end - begin, depth, a + r * lda, lda, b + begin * kLanes,
                                                  kTile, c + r * kTile + begin * kLanes, kTile, nullptr);
    });
}

// c[rows, cols] (+)= p b[depth, cols] where p, a tile of scores, is zero out of the band: kAcross sums over
// its rows, and c's rows are its lanes; else over its lanes. b and c have rows of `ld`; Sum::scale_and_add
// multiplies c by factor[its row] first.
template <bool kAcross, Sum kSum>
inline void attention_accumulate(const AttentionBand& band, int64_t rows, int64_t cols, int64_t depth,
                                 const float* p, const float* b, float* c, int64_t ld,
                                 const float* factor = nullptr) {
  using attention::kTile;
  const int64_t vectors = cols / kLanes, width = attention_width(vectors);
  for (int64_t j = 0; j < vectors; j += width)
    attention_row_blocks(rows, [&]<int kM>(int64_t i) {
      const int64_t begin = std::max<int64_t>(0, kAcross ? i - band.last : i + band.first);
      const int64_t end = std::max(begin, std::min(depth, kAcross ? i + kM - band.first : i + kM + band.last));
      attention_columns<kM, kAcross, kSum>(std::min(width, vectors - j), end - begin,
                                           kAcross ? p + begin * kTile + i : p + i * kTile + begin, kTile,
                                           b + begin * ld + j * kLanes, ld, c + i * ld + j * kLanes, ld,
                                           kSum == Sum::scale_and_add ? factor + i : nullptr);
    });
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
