// The products over one task's part of the output. kernels/gemm/gemm_blocks.h says what of this is
// arithmetic.

// Rows and vectors of the accumulators: with one row's x and the panel's vectors they fill the registers.
inline constexpr int kTileRows = kLanes == 16 ? 8 : kLanes == 8 ? 6 : 4;
inline constexpr int kTileVecs = kLanes == 16 ? 3 : kLanes == 8 ? 2 : 4;
inline constexpr int kTileCols = kTileVecs * kLanes;

#include "kernels/gemm/gemm_decode.inl"

// c[kRows, kVecs] (+)= a b over `count` terms, from 0 and then added. a is row-major, or with kTransA has its
// rows as columns.
template <int kRows, int kVecs, bool kTransA>
inline void tile(const float* a, int64_t stride_a, const float* b, int64_t count, float* c, int64_t stride_c,
                 bool first) {
  Vec sum[kRows][kVecs];
#pragma GCC unroll 24
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < kVecs; ++j) sum[i][j] = zero();
  for (int64_t k = 0; k < count; ++k, b += kTileCols, a += kTransA ? stride_a : 1) {
    Vec w[kVecs];
#pragma GCC unroll 4
    for (int j = 0; j < kVecs; ++j) w[j] = load(b + j * kLanes);
#pragma GCC unroll 24
    for (int i = 0; i < kRows; ++i) {
      const Vec x = set1(kTransA ? a[i] : a[i * kStrideA]);
#pragma GCC unroll 4
      for (int j = 0; j < kVecs; ++j) sum[i][j] = fma(x, w[j], sum[i][j]);
    }
  }
#pragma GCC unroll 24
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < kVecs; ++j) {
      float* at = c + i * stride_c + j * kLanes;
      store(at, first ? sum[i][j] : add(load(at), sum[i][j]));
    }
}

using Tile = void (*)(const float*, int64_t, const float*, int64_t, float*, int64_t, bool);

template <int kRows, int kVecs, bool kTransA>
inline Tile tile_of(int64_t rows, int64_t vecs) {
  if constexpr (kVecs > 1)
    if (vecs < kVecs) return tile_of<kRows, kVecs - 1, kTransA>(rows, vecs);
  if constexpr (kRows > 1)
    if (rows < kRows) return tile_of<kRows - 1, kVecs, kTransA>(rows, vecs);
  return tile<kRows, kVecs, kTransA>;
}

// Rows of a tile of `vecs` vectors that has as many accumulators as the widest one.
inline constexpr int tall_rows(int64_t vecs) { return kTileRows * kTileVecs / static_cast<int>(vecs); }

template <int kVecs, bool kTransA>
inline Tile tall_tile(int64_t vecs) {
  if constexpr (kVecs > 1)
    if (vecs < kVecs) return tall_tile<kVecs - 1, kTransA>(vecs);
  return tile<tall_rows(kVecs), kVecs, kTransA>;
}

// A panel against all rows of a task.
template <bool kTransA>
inline void multiply(const float* a, int64_t stride_a, int64_t rows, const float* panel, int64_t cols,
                     int64_t count, float* c, int64_t stride_c, bool first) {
  const int64_t vecs = (cols + kLanes - 1) / kLanes;
  const int64_t next_row = kTransA ? 1 : kStrideA;
  const Tile tall = tall_tile<kTileVecs, kTransA>(vecs);
  int64_t r = 0;
  for (const int64_t step = tall_rows(vecs); r + step <= rows; r += step)
    tall(a + r * next_row, stride_a, panel, count, c + r * stride_c, stride_c, first);
  for (int64_t n; r < rows; r += n) {
    n = rows - r < kTileRows ? rows - r : kTileRows;
    tile_of<kTileRows, kTileVecs, kTransA>(n, vecs)(a + r * next_row, stride_a, panel, count,
                                                    c + r * stride_c, stride_c, first);
  }
}

// [rows, cols] of fp32 or bf16 as fp32; the last vector of a row is filled up with zeros.
template <class T>
inline void pack_rows(const ConstMat& m, int64_t row, int64_t rows, int64_t col, int64_t cols, float* out,
                      int64_t stride) {
  for (int64_t r = 0; r < rows; ++r, out += stride) {
    const T* from = m.row<T>(row + r) + col;
    int64_t c = 0;
    for (; c + kLanes <= cols; c += kLanes) store(out + c, load(from + c));
    if (c < cols) store(out + c, load_part(from + c, cols - c));
  }
}

inline void pack(const ConstMat& m, int64_t row, int64_t rows, int64_t col, int64_t cols, float* out,
                 int64_t stride) {
  if (m.dtype == DType::bf16)
    pack_rows<bf16>(m, row, rows, col, cols, out, stride);
  else
    pack_rows<float>(m, row, rows, col, cols, out, stride);
}

inline Vec residual_part(const ConstMat& m, int64_t row, int64_t col, int64_t n) {
  return m.dtype == DType::bf16 ? load_part(m.row<bf16>(row) + col, n)
                                : load_part(m.row<float>(row) + col, n);
}

// Bias and residual, and the one rounding.
template <class T>
inline void finish(const GemmCall& call, const GemmPart& part, const float* c, int64_t stride_c) {
  const GemmEpilogue& e = call.epilogue;
  for (int64_t r = 0; r < part.rows; ++r, c += stride_c) {
    T* y = call.y.row<T>(part.row + r) + part.col;
    for (int64_t j = 0; j < part.cols; j += kLanes) {
      const int64_t n = part.cols - j;
      Vec sum = load(c + j);
      if (e.bias != nullptr) sum = add(sum, load_part(e.bias + part.col + j, n));
      if (e.residual) sum = add(sum, residual_part(e.residual, part.row + r, part.col + j, n));
      store_part(y + j, sum, n);
    }
  }
}

inline void gemm_part(const GemmCall& call, const GemmPart& part, const GemmWorkspace& space, float* memory) {
  float *a = memory, *panel = a + space.a, *c = panel + space.panel;
  // A panel that serves alone stays decoded while x passes through the nearest cache, a few tiles at a time.
  const int64_t packed_rows = part.cols <= kTileCols ? 2 * kTileRows * kTileVecs : part.rows;
  bool first = true;
  for (const GemmTerm& t : call.terms) {
    const bool to_bf16 = t.x.dtype == DType::bf16 || is_gguf(t.w.format);
    for (int64_t k = 0; k < t.x.cols; k += kBlockK) {
      const int64_t count = t.x.cols - k < kBlockK ? t.x.cols - k : kBlockK;
      for (int64_t r = 0; r < part.rows; r += packed_rows) {
        const int64_t rows = part.rows - r < packed_rows ? part.rows - r : packed_rows;
        pack(t.x, part.row + r, rows, k, count, a, kStrideA);
        for (int64_t j = 0; j < part.cols; j += kTileCols) {
          const int64_t cols = part.cols - j < kTileCols ? part.cols - j : kTileCols;
          if (r == 0) decode_panel(call.transposed_w, t.w, part.col + j, cols, k, count, to_bf16, panel);
          multiply<false>(a, kStrideA, rows, panel, cols, count, c + r * space.stride_c + j, space.stride_c,
                          first);
        }
      }
      first = false;
    }
  }
  if (first) std::memset(c, 0, sizeof(float) * static_cast<size_t>(part.rows * space.stride_c));
  if (call.y.dtype == DType::bf16)
    finish<bf16>(call, part, c, space.stride_c);
  else
    finish<float>(call, part, c, space.stride_c);
}

inline void add_scaled(const GemmTnCall& call, const GemmPart& part, const float* c, int64_t stride_c) {
  for (int64_t r = 0; r < part.rows; ++r, c += stride_c) {
    float* out = call.out.row<float>(part.row + r) + part.col;
    for (int64_t j = 0; j < part.cols; j += kLanes) {
      const int64_t n = part.cols - j;
      store_part(out + j, add(load_part(out + j, n), mul(load(c + j), set1(call.scale))), n);
    }
  }
}

inline void gemm_tn_part(const GemmTnCall& call, const GemmPart& part, const GemmWorkspace& space,
                         float* memory) {
  float *a = memory, *panel = a + space.a, *c = panel + space.panel;
  const int64_t stride_a = (part.rows + 15) / 32 * 32 + 16;  // odd in cache lines
  for (int64_t m = 0; m < call.a.rows; m += kBlockK) {
    const int64_t count = call.a.rows - m < kBlockK ? call.a.rows - m : kBlockK;
    pack(call.a, m, count, part.row, part.rows, a, stride_a);
    for (int64_t j = 0; j < part.cols; j += kTileCols) {
      const int64_t cols = part.cols - j < kTileCols ? part.cols - j : kTileCols;
      pack(call.b, m, count, part.col + j, cols, panel, kTileCols);
      multiply<true>(a, stride_a, part.rows, panel, cols, count, c + j, space.stride_c, m == 0);
    }
  }
  add_scaled(call, part, c, space.stride_c);
}

inline GemmTile gemm_tile() { return {kTileRows, kTileCols, kMostPanels}; }
