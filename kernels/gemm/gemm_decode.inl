// Panels of W: kBlockK x kTileCols fp32, row k of the panel holding what k multiplies.

#include "kernels/gemm/weight_row.inl"

// Rows lie further apart than the hardware looks: what is wanted of them is asked for. (Of GGUF's blocks it
// is not: they are read in order alone.)
inline constexpr int64_t kRowsAhead = 16;
template <Format F>
inline void prefetch(const WeightView& w, int64_t row, int64_t col, int64_t n) {
  constexpr int64_t kBits = F == Format::f32                        ? 32
                            : F == Format::f16 || F == Format::bf16 ? 16
                            : F == Format::int8                     ? 8
                            : F == Format::nf4 || F == Format::fp4  ? 4
                                                                    : 0;
  const char* p = static_cast<const char*>(w.data) + (row * w.cols + col) * kBits / 8;
  for (int64_t b = 0; b < n * kBits / 8; b += 64) __builtin_prefetch(p + b);
  if (kBits > 0) __builtin_prefetch(p + n * kBits / 8 - 1);
}

// Rows row .. row+rows of W, elements k .. k+count of each, transposed: to one vector's width of the panel.
template <Format F>
inline void panel_nt_lanes(const WeightView& w, int64_t row, int64_t rows, int64_t k, int64_t count,
                           bool to_bf16, float* panel) {
  WeightRow<F> decoder[kLanes];
  for (int64_t r = 0; r < rows; ++r) {
    decoder[r] = WeightRow<F>(w, row + r, to_bf16);
    if (row + r + kRowsAhead < w.rows) prefetch<F>(w, row + r + kRowsAhead, k, count);
  }
  Vec v[kLanes];
  const int64_t whole = in_lanes(w) ? count - count % kLanes : 0;
  int64_t i = 0;
  while (i < whole) {
    int64_t end = whole;
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t left = decoder[r].block(k + i);
      if (left < end - i) end = i + left;
    }
    for (; i < end; i += kLanes) {
      if (rows == kLanes) {
#pragma GCC unroll 16
        for (int r = 0; r < kLanes; ++r) v[r] = decoder[r].at(k + i);
      } else {
        for (int64_t r = 0; r < kLanes; ++r) v[r] = r < rows ? decoder[r].at(k + i) : zero();
      }
      transpose(v);
#pragma GCC unroll 16
      for (int j = 0; j < kLanes; ++j) store(panel + (i + j) * kTileCols, v[j]);
    }
  }
  for (; i < count; i += kLanes) {
    const int64_t n = count - i < kLanes ? count - i : kLanes;
    for (int64_t r = 0; r < kLanes; ++r)
      v[r] = r < rows ? decode_part(w, row + r, k + i, n, to_bf16) : zero();
    transpose(v);
    for (int64_t j = 0; j < n; ++j) store(panel + (i + j) * kTileCols, v[j]);
  }
}

// Rows col .. col+cols of W [N, K], elements k .. k+count of each.
template <Format F>
inline void panel_nt(const WeightView& w, int64_t col, int64_t cols, int64_t k, int64_t count, bool to_bf16,
                     float* panel) {
  for (int64_t j = 0; j < cols; j += kLanes)
    panel_nt_lanes<F>(w, col + j, cols - j < kLanes ? cols - j : kLanes, k, count, to_bf16, panel + j);
}

// Rows k .. k+count of W [K, N], columns col .. col+cols of each.
template <Format F>
inline void panel_nn(const WeightView& w, int64_t col, int64_t cols, int64_t k, int64_t count, bool to_bf16,
                     float* panel) {
  const int64_t whole = in_lanes(w) ? cols - cols % kLanes : 0;
  for (int64_t i = 0; i < count; ++i, panel += kTileCols) {
    WeightRow<F> row(w, k + i, to_bf16);
    if (i + kRowsAhead < count) prefetch<F>(w, k + i + kRowsAhead, col, cols);
    int64_t j = 0;
    while (j < whole) {
      const int64_t left = row.block(col + j), end = left < whole - j ? j + left : whole;
      for (; j < end; j += kLanes) store(panel + j, row.at(col + j));
    }
    for (; j < cols; j += kLanes)
      store(panel + j, decode_part(w, k + i, col + j, cols - j < kLanes ? cols - j : kLanes, to_bf16));
  }
}

template <Format F>
inline void panel_of(bool transposed_w, const WeightView& w, int64_t col, int64_t cols, int64_t k,
                     int64_t count, bool to_bf16, float* panel) {
  if (transposed_w)
    panel_nt<F>(w, col, cols, k, count, to_bf16, panel);
  else
    panel_nn<F>(w, col, cols, k, count, to_bf16, panel);
}

inline void decode_panel(bool transposed_w, const WeightView& w, int64_t col, int64_t cols, int64_t k,
                         int64_t count, bool to_bf16, float* panel) {
  switch (w.format) {
    case Format::f32:
      return panel_of<Format::f32>(transposed_w, w, col, cols, k, count, to_bf16, panel);
    case Format::f16:
      return panel_of<Format::f16>(transposed_w, w, col, cols, k, count, to_bf16, panel);
    case Format::bf16:
      return panel_of<Format::bf16>(transposed_w, w, col, cols, k, count, to_bf16, panel);
    case Format::nf4:
      return panel_of<Format::nf4>(transposed_w, w, col, cols, k, count, to_bf16, panel);
    case Format::fp4:
      return panel_of<Format::fp4>(transposed_w, w, col, cols, k, count, to_bf16, panel);
    case Format::int8:
      return panel_of<Format::int8>(transposed_w, w, col, cols, k, count, to_bf16, panel);
    case Format::q4_0:
      return panel_of<Format::q4_0>(transposed_w, w, col, cols, k, count, to_bf16, panel);
    case Format::q4_1:
      return panel_of<Format::q4_1>(transposed_w, w, col, cols, k, count, to_bf16, panel);
    case Format::q8_0:
      return panel_of<Format::q8_0>(transposed_w, w, col, cols, k, count, to_bf16, panel);
  }
}
