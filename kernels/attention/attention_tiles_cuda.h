#pragma once
#include <utility>

#include "kernels/attention/attention_args.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/rows.h"

// What attention's CUDA kernels share: fp32 multiply-adds over tiles of rows in shared memory.
namespace qlora::cuda {

// A block's tile of queries or keys, and the four threads that a row of it has: each takes every fourth
// column of the scores and every fourth element of the head. Heads of up to kMostDim.
template <int kMostDim>
struct AttentionTile {
  static constexpr int kRows = kMostDim > 128 ? 16 : 32, kThreads = 4 * kRows;
  static constexpr int kStride = kMostDim + 1;                   // of a row in shared memory, in floats
  static constexpr int kSize = kRows * kStride;                  // of a tile of rows
  static constexpr int kScores = kRows * (kRows + 1);            // of a tile of scores
  static constexpr int kCols = kRows / 4, kEach = kMostDim / 4;  // of a thread
};

// A block's document and the first row of its tile, counted from the document's begin.
struct AttentionPlace {
  int64_t q_begin, q_count, k_begin, k_count, first;
  QLORA_DEVICE int64_t offset() const { return k_count - q_count; }  // query i stands at key i + offset
};

template <class T>
struct AttentionData {
  AttentionShape shape;
  Rows<const T> q, k, v, d_o;
  const float *lse, *delta;
  int64_t lse_stride, rows;  // delta's stride is the count of all query rows
  const int32_t *q_bounds, *k_bounds;

  QLORA_DEVICE int group() const { return shape.q_heads / shape.kv_heads; }
  QLORA_DEVICE float capped(float score) const {
    return shape.softcap > 0 ? shape.softcap * tanh(score / shape.softcap) : score;
  }
  // The first key that a query whose own is `last` sees.
  QLORA_DEVICE int64_t earliest(int64_t last) const {
    return shape.window > 0 && last >= shape.window ? last - shape.window + 1 : 0;
  }

  // The tile-th tile of all documents' queries, or keys.
  template <int kRows>
  QLORA_DEVICE AttentionPlace place(int64_t tile, bool of_keys) const {
    const int32_t* bounds = of_keys ? k_bounds : q_bounds;
    for (int d = 0;; ++d) {
      const int64_t tiles = (bounds[d + 1] - bounds[d] + kRows - 1) / kRows;
      if (tile < tiles)
        return {q_bounds[d], q_bounds[d + 1] - q_bounds[d], k_bounds[d], k_bounds[d + 1] - k_bounds[d],
                tile * kRows};
      tile -= tiles;
    }
  }

  // p and ds of a score: the gradient of its softmax, times the slope of the cap, times the scale.
  QLORA_DEVICE std::pair<float, float> gradient(float dot, float d_p, float lse_of, float delta_of) const {
    const float score = capped(dot * shape.scale);
    const float p = exp(score - lse_of);
    float ds = p * (d_p - delta_of);
    if (shape.softcap > 0) {
      const float t = score / shape.softcap;
      ds *= 1.f - t * t;
    }
    return {p, ds * shape.scale};
  }
};

// Rows [begin, begin + kRows) of one head into shared memory, zeros from `end` on.
template <class Tile, class T>
QLORA_DEVICE void load_head(Shared<float> to, Rows<const T> from, int head, int dim, int64_t begin,
                            int64_t end) {
  for (int i = thread(); i < Tile::kRows * dim; i += Tile::kThreads) {
    const int r = i / dim, c = i % dim;
    to[r * Tile::kStride + c] = begin + r < end ? to_float(from[begin + r][head * dim + c]) : 0.f;
  }
}

// Row `row` of a with the thread's rows of b.
template <class Tile>
QLORA_DEVICE void dot_rows(float (&out)[Tile::kCols], Shared<float> a, int row, Shared<float> b, int part,
                           int dim) {
#pragma unroll
  for (int t = 0; t < Tile::kCols; ++t) out[t] = 0;
  for (int c = 0; c < dim; ++c) {
    const float x = a[row * Tile::kStride + c];
#pragma unroll
    for (int t = 0; t < Tile::kCols; ++t) out[t] = fma(x, b[(part + 4 * t) * Tile::kStride + c], out[t]);
  }
}

// sums += row `row` of the weights, times the rows of b: the thread's elements of the head.
template <class Tile>
QLORA_DEVICE void add_rows(float (&sums)[Tile::kEach], Shared<float> weights, int row, Shared<float> b,
                           int part, int dim) {
  for (int j = 0; j < Tile::kRows; ++j) {
    const float x = weights[row * (Tile::kRows + 1) + j];
#pragma unroll
    for (int i = 0; i < Tile::kEach; ++i)
      if (part + 4 * i < dim) sums[i] = fma(x, b[j * Tile::kStride + part + 4 * i], sums[i]);
  }
}

template <class Tile, class T>
QLORA_DEVICE void store_head(T* row, int head, int dim, int part, const float (&sums)[Tile::kEach],
                             float factor) {
#pragma unroll
  for (int i = 0; i < Tile::kEach; ++i)
    if (part + 4 * i < dim) row[head * dim + part + 4 * i] = from_float<T>(sums[i] * factor);
}

// f(T(), tile) with the operands' type and the tile of the head's size.
template <class F>
void with_attention(const attention::Args& a, F&& f) {
  with_type(a.q.dtype, [&](auto x) {
    if (a.dim() <= 64)
      f(x, AttentionTile<64>());
    else if (a.dim() <= 128)
      f(x, AttentionTile<128>());
    else
      f(x, AttentionTile<256>());
  });
}

template <class T>
AttentionData<T> attention_data(const attention::Args& a, const Segments& docs) {
  return {a.shape, rows_of<T>(a.q), rows_of<T>(a.k), rows_of<T>(a.v), rows_of<T>(a.d_o), a.lse,
          a.delta, a.lse_stride,    a.q.rows,        docs.q.data(),   docs.k.data()};
}

template <class Tile>
int64_t attention_tiles(std::span<const int32_t> bounds) {
  int64_t tiles = 0;
  for (size_t d = 0; d + 1 < bounds.size(); ++d)
    tiles += (bounds[d + 1] - bounds[d] + Tile::kRows - 1) / Tile::kRows;
  return tiles;
}

}  // namespace qlora::cuda
