#include "kernels/attention/attention_bodies_cuda.h"
#include "kernels/attention/attention_documents_cuda.h"
#include "kernels/cuda/rows.h"

// Multiply-adds over tiles in shared memory: what compute type fp32 is there for is to check the other.
namespace qlora {
namespace cuda {
namespace {

constexpr float kNothing = -__builtin_inff();  // the score of a key that is not seen

// A block's tile of queries or keys, and the four threads that a row of it has: each takes every fourth
// column of the scores and every fourth element of the head. Heads of up to kMostDim.
template <int kMostDim>
struct Tile {
  static constexpr int kRows = kMostDim > 128 ? 16 : 32, kThreads = 4 * kRows;
  static constexpr int kStride = kMostDim + 1, kScoreStride = kRows + 1;  // of a row in shared memory
  static constexpr int kSize = kRows * kStride, kScores = kRows * kScoreStride;
  static constexpr int kCols = kRows / 4, kEach = kMostDim / 4;  // of a thread
};

struct Operands {
  AttentionDocuments docs;
  Rows<const float> q, k, v, d_o;
  AttentionShape shape;
  const float *lse, *delta;
  int64_t lse_stride, rows;  // delta's stride is the count of all query rows

  QLORA_DEVICE int group() const { return shape.q_heads / shape.kv_heads; }
  // The first key that a query which stands at `position` sees.
  QLORA_DEVICE int earliest(int position) const {
    return shape.window > 0 && position >= shape.window ? position - shape.window + 1 : 0;
  }
  QLORA_DEVICE float score(float dot) const {
    const float x = dot * shape.scale;
    return shape.softcap > 0 ? shape.softcap * tanh(x / shape.softcap) : x;
  }

  // p and ds of a score: the gradient of its softmax, times the slope of the cap, times the scale.
  struct Weights {
    float p, ds;
  };
  QLORA_DEVICE Weights weights(float dot, float d_p, float lse_of, float delta_of) const {
    const float x = score(dot), p = exp(x - lse_of), ds = p * (d_p - delta_of) * shape.scale;
    if (!(shape.softcap > 0)) return {p, ds};
    const float t = x / shape.softcap;
    return {p, ds * (1.f - t * t)};
  }
};

// Rows [first, first + kRows) of one head, zeros from `count` on.
template <class T>
QLORA_DEVICE void load_rows(Shared<float> to, const Rows<const float>& from, int head, int dim, int begin,
                            int first, int count) {
  for (int i = thread(); i < T::kRows * dim; i += T::kThreads) {
    const int r = i / dim, c = i % dim;
    to[r * T::kStride + c] = first + r < count ? from[begin + first + r][head * dim + c] : 0.f;
  }
}

// Row `row` of a with the thread's rows of b.
template <class T>
QLORA_DEVICE void dot_rows(float (&out)[T::kCols], Shared<float> a, int row, Shared<float> b, int part,
                           int dim) {
#pragma unroll
  for (int t = 0; t < T::kCols; ++t) out[t] = 0;
  for (int c = 0; c < dim; ++c) {
    const float x = a[row * T::kStride + c];
#pragma unroll
    for (int t = 0; t < T::kCols; ++t) out[t] = fma(x, b[(part + 4 * t) * T::kStride + c], out[t]);
  }
}

// sums += row `row` of the weights, times the rows of b: the thread's elements of the head.
template <class T>
QLORA_DEVICE void add_rows(float (&sums)[T::kEach], Shared<float> weights, int row, Shared<float> b, int part,
                           int dim) {
  for (int j = 0; j < T::kRows; ++j) {
    const float x = weights[row * T::kScoreStride + j];
#pragma unroll
    for (int i = 0; i < T::kEach; ++i)
      if (part + 4 * i < dim) sums[i] = fma(x, b[j * T::kStride + part + 4 * i], sums[i]);
  }
}

template <class T>
QLORA_DEVICE void store_row(float* row, int head, int dim, int part, const float (&sums)[T::kEach],
                            float factor) {
#pragma unroll
  for (int i = 0; i < T::kEach; ++i)
    if (part + 4 * i < dim) row[head * dim + part + 4 * i] = sums[i] * factor;
}

// A block a tile of queries of one head; keys and values pass through one tile, in turn.
template <class T>
struct AttentionForwardFp32Kernel {
  static constexpr int kThreads = T::kThreads;
  static constexpr size_t kShared = (2 * T::kSize + T::kScores) * sizeof(float);
  Operands a;
  Rows<float> o;
  float* lse;  // null: not wanted

  QLORA_DEVICE void operator()(SharedMemory shared) const {
    const Shared<float> q = shared.take<float>(T::kSize), kv = shared.take<float>(T::kSize),
                        p = shared.take<float>(T::kScores);
    const AttentionPlace at = a.docs.place(block_x(), false, T::kRows);
    const int head = block_y(), kv_head = head / a.group(), dim = a.shape.head_dim;
    const int row = thread() / 4, part = thread() % 4, i = at.first + row, position = i + at.offset();
    load_rows<T>(q, a.q, head, dim, at.q_begin, at.first, at.q_count);

    float sums[T::kEach] = {}, top = kNothing, total = 0;
    const int begin = a.earliest(at.first + at.offset()), stop = at.first + T::kRows + at.offset();
    const int end = stop < at.k_count ? stop : at.k_count;
    for (int j = begin / T::kRows * T::kRows; j < end; j += T::kRows) {
      barrier();  // the former values are read
      load_rows<T>(kv, a.k, kv_head, dim, at.k_begin, j, at.k_count);
      barrier();
      float s[T::kCols];
      dot_rows<T>(s, q, row, kv, part, dim);
      const float former = top;
#pragma unroll
      for (int t = 0; t < T::kCols; ++t) {
        const int key = j + part + 4 * t;
        s[t] = key <= position && key >= a.earliest(position) ? a.score(s[t]) : kNothing;
        top = max(top, s[t]);
      }
      top = max(top, shuffle_xor(top, 1));
      top = max(top, shuffle_xor(top, 2));
      const float base = top == kNothing ? 0.f : top, shrink = exp(former - base);  // none seen yet: 0
      total *= shrink;
#pragma unroll
      for (int x = 0; x < T::kEach; ++x) sums[x] *= shrink;
#pragma unroll
      for (int t = 0; t < T::kCols; ++t) {
        const float weight = exp(s[t] - base);
        total += weight;
        p[row * T::kScoreStride + part + 4 * t] = weight;
      }
      barrier();  // keys are read, p is there
      load_rows<T>(kv, a.v, kv_head, dim, at.k_begin, j, at.k_count);
      barrier();
      add_rows<T>(sums, p, row, kv, part, dim);
    }
    total += shuffle_xor(total, 1);
    total += shuffle_xor(total, 2);
    if (i >= at.q_count) return;
    store_row<T>(o[at.q_begin + i], head, dim, part, sums, 1.f / total);
    if (lse != nullptr && part == 0) lse[head * a.lse_stride + at.q_begin + i] = top + log(total);
  }
};

// A block a tile of keys of one key head: dK and dV, over the queries of every head that reads it, in order.
template <class T>
struct AttentionKeysFp32Kernel {
  static constexpr int kThreads = T::kThreads;
  static constexpr size_t kShared = (4 * T::kSize + 2 * T::kScores) * sizeof(float);
  Operands a;
  Rows<float> d_k, d_v;

  QLORA_DEVICE void operator()(SharedMemory shared) const {
    const Shared<float> k = shared.take<float>(T::kSize), v = shared.take<float>(T::kSize),
                        q = shared.take<float>(T::kSize), d_o = shared.take<float>(T::kSize),
                        p = shared.take<float>(T::kScores), ds = shared.take<float>(T::kScores);
    const AttentionPlace at = a.docs.place(block_x(), true, T::kRows);
    const int kv_head = block_y(), dim = a.shape.head_dim, row = thread() / 4, part = thread() % 4;
    const int j = at.first + row;
    load_rows<T>(k, a.k, kv_head, dim, at.k_begin, at.first, at.k_count);
    load_rows<T>(v, a.v, kv_head, dim, at.k_begin, at.first, at.k_count);

    float sums_k[T::kEach] = {}, sums_v[T::kEach] = {};
    // Queries that see a key of the tile.
    const int begin = at.first > at.offset() ? at.first - at.offset() : 0;
    const int last = at.first + T::kRows - 1 - at.offset();
    const int end =
        a.shape.window > 0 && last < at.q_count - a.shape.window ? last + a.shape.window : at.q_count;
    for (int head = kv_head * a.group(); head < (kv_head + 1) * a.group(); ++head)
      for (int i0 = begin / T::kRows * T::kRows; i0 < end; i0 += T::kRows) {
        barrier();  // the tiles before are read
        load_rows<T>(q, a.q, head, dim, at.q_begin, i0, at.q_count);
        load_rows<T>(d_o, a.d_o, head, dim, at.q_begin, i0, at.q_count);
        barrier();
        float dots[T::kCols], d_p[T::kCols];
        dot_rows<T>(dots, k, row, q, part, dim);
        dot_rows<T>(d_p, v, row, d_o, part, dim);
#pragma unroll
        for (int t = 0; t < T::kCols; ++t) {
          const int i = i0 + part + 4 * t, position = i + at.offset();
          Operands::Weights w{0.f, 0.f};
          if (i < at.q_count && j <= position && j >= a.earliest(position))
            w = a.weights(dots[t], d_p[t], a.lse[head * a.lse_stride + at.q_begin + i],
                          a.delta[head * a.rows + at.q_begin + i]);
          p[row * T::kScoreStride + part + 4 * t] = w.p;
          ds[row * T::kScoreStride + part + 4 * t] = w.ds;
        }
        warp_barrier();  // a row's four threads are of one warp
        add_rows<T>(sums_v, p, row, d_o, part, dim);
        add_rows<T>(sums_k, ds, row, q, part, dim);
      }
    if (j >= at.k_count) return;
    store_row<T>(d_k[at.k_begin + j], kv_head, dim, part, sums_k, 1.f);
    store_row<T>(d_v[at.k_begin + j], kv_head, dim, part, sums_v, 1.f);
  }
};

// A block a tile of queries of one head: dQ, over the keys that it sees, in order.
template <class T>
struct AttentionQueriesFp32Kernel {
  static constexpr int kThreads = T::kThreads;
  static constexpr size_t kShared = (4 * T::kSize + T::kScores) * sizeof(float);
  Operands a;
  Rows<float> d_q;

  QLORA_DEVICE void operator()(SharedMemory shared) const {
    const Shared<float> q = shared.take<float>(T::kSize), d_o = shared.take<float>(T::kSize),
                        k = shared.take<float>(T::kSize), v = shared.take<float>(T::kSize),
                        ds = shared.take<float>(T::kScores);
    const AttentionPlace at = a.docs.place(block_x(), false, T::kRows);
    const int head = block_y(), kv_head = head / a.group(), dim = a.shape.head_dim;
    const int row = thread() / 4, part = thread() % 4, i = at.first + row, position = i + at.offset();
    load_rows<T>(q, a.q, head, dim, at.q_begin, at.first, at.q_count);
    load_rows<T>(d_o, a.d_o, head, dim, at.q_begin, at.first, at.q_count);
    const bool inside = i < at.q_count;
    const float lse = inside ? a.lse[head * a.lse_stride + at.q_begin + i] : 0.f;
    const float delta = inside ? a.delta[head * a.rows + at.q_begin + i] : 0.f;

    float sums[T::kEach] = {};
    const int begin = a.earliest(at.first + at.offset()), stop = at.first + T::kRows + at.offset();
    const int end = stop < at.k_count ? stop : at.k_count;
    for (int j0 = begin / T::kRows * T::kRows; j0 < end; j0 += T::kRows) {
      barrier();  // the tiles before are read
      load_rows<T>(k, a.k, kv_head, dim, at.k_begin, j0, at.k_count);
      load_rows<T>(v, a.v, kv_head, dim, at.k_begin, j0, at.k_count);
      barrier();
      float dots[T::kCols], d_p[T::kCols];
      dot_rows<T>(dots, q, row, k, part, dim);
      dot_rows<T>(d_p, d_o, row, v, part, dim);
#pragma unroll
      for (int t = 0; t < T::kCols; ++t) {
        const int j = j0 + part + 4 * t;
        const bool seen = inside && j >= a.earliest(position) && j <= position;
        ds[row * T::kScoreStride + part + 4 * t] = seen ? a.weights(dots[t], d_p[t], lse, delta).ds : 0.f;
      }
      warp_barrier();  // a row's four threads are of one warp
      add_rows<T>(sums, ds, row, k, part, dim);
    }
    if (inside) store_row<T>(d_q[at.q_begin + i], head, dim, part, sums, 1.f);
  }
};

Operands operands(const attention::Args& a, const AttentionDocuments& docs) {
  return {docs,
          rows_of<float>(a.q),
          rows_of<float>(a.k),
          rows_of<float>(a.v),
          rows_of<float>(a.d_o),
          a.shape,
          a.lse,
          a.delta,
          a.lse_stride,
          a.q.rows};
}

// f(the tile of the head's size)
template <class F>
void with_tile(int64_t dim, F&& f) {
  if (dim <= 64)
    f(Tile<64>());
  else if (dim <= 128)
    f(Tile<128>());
  else
    f(Tile<256>());
}

}  // namespace
}  // namespace cuda

void attention::forward_fp32_cuda(Exec& e, const Args& a, const Segments& docs) {
  cuda::with_tile(a.dim(), [&](auto tile) {
    using Kernel = cuda::AttentionForwardFp32Kernel<decltype(tile)>;
    cuda::for_each_launch(docs, false, tile.kRows, [&](const cuda::AttentionDocuments& d, int blocks) {
      cuda::launch(e, {blocks, a.shape.q_heads}, Kernel::kShared,
                   Kernel{cuda::operands(a, d), cuda::rows_of<float>(a.out), a.lse_out});
    });
  });
}

void attention::backward_fp32_cuda(Exec& e, const Args& a, const Segments& docs) {
  cuda::with_tile(a.dim(), [&](auto tile) {
    using Keys = cuda::AttentionKeysFp32Kernel<decltype(tile)>;
    using Queries = cuda::AttentionQueriesFp32Kernel<decltype(tile)>;
    cuda::for_each_launch(docs, true, tile.kRows, [&](const cuda::AttentionDocuments& d, int blocks) {
      cuda::launch(e, {blocks, a.shape.kv_heads}, Keys::kShared,
                   Keys{cuda::operands(a, d), cuda::rows_of<float>(a.d_k), cuda::rows_of<float>(a.d_v)});
    });
    cuda::for_each_launch(docs, false, tile.kRows, [&](const cuda::AttentionDocuments& d, int blocks) {
      cuda::launch(e, {blocks, a.shape.q_heads}, Queries::kShared,
                   Queries{cuda::operands(a, d), cuda::rows_of<float>(a.d_q)});
    });
  });
}

}  // namespace qlora
