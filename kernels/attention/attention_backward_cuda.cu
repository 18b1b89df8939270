#include "kernels/attention/attention_tiles_cuda.h"
#include "kernels/cuda/reduce.h"

namespace qlora {
namespace cuda {
namespace {

// delta = rowsum(d_o * o): a warp a row of one head.
template <class T>
struct AttentionDeltaKernel {
  static constexpr int kThreads = 128;
  Rows<const T> d_o, o;
  float* delta;
  int64_t rows;
  int heads, dim;

  QLORA_DEVICE void operator()(SharedMemory) const {
    const int64_t at = int64_t{block_x()} * (kThreads / kWarp) + warp();
    if (at >= rows * heads) return;
    const int64_t row = at / heads;
    const int head = static_cast<int>(at % heads);
    float sum = 0;
    for (int c = lane(); c < dim; c += kWarp)
      sum = fma(to_float(d_o[row][head * dim + c]), to_float(o[row][head * dim + c]), sum);
    sum = warp_sum(sum);
    if (lane() == 0) delta[head * rows + row] = sum;
  }
};

// A block a tile of keys of one key head: dK and dV, over the queries of every head that reads it, in order.
template <class T, class Tile>
struct AttentionKeysKernel {
  static constexpr int kThreads = Tile::kThreads;
  static constexpr size_t kShared = (4 * Tile::kSize + 2 * Tile::kScores) * sizeof(float) + 64;
  AttentionData<T> data;
  Rows<T> d_k, d_v;

  QLORA_DEVICE void operator()(SharedMemory shared) const {
    const Shared<float> k = shared.take<float>(Tile::kSize), v = shared.take<float>(Tile::kSize),
                        q = shared.take<float>(Tile::kSize), d_o = shared.take<float>(Tile::kSize),
                        p = shared.take<float>(Tile::kScores), ds = shared.take<float>(Tile::kScores);
    const AttentionPlace at = data.template place<Tile::kRows>(block_x(), true);
    const int kv_head = block_y(), dim = data.shape.head_dim, row = thread() / 4, part = thread() % 4;
    const int64_t j = at.first + row;
    load_head<Tile>(k, data.k, kv_head, dim, at.k_begin + at.first, at.k_begin + at.k_count);
    load_head<Tile>(v, data.v, kv_head, dim, at.k_begin + at.first, at.k_begin + at.k_count);

    float sums_k[Tile::kEach] = {}, sums_v[Tile::kEach] = {};
    // Queries that see a key of the tile.
    const int64_t begin = at.first > at.offset() ? at.first - at.offset() : 0;
    const int64_t stop = at.first + Tile::kRows - 1 + data.shape.window - at.offset();
    const int64_t end = data.shape.window > 0 && stop < at.q_count ? stop : at.q_count;
    for (int head = kv_head * data.group(); head < (kv_head + 1) * data.group(); ++head)
      for (int64_t i0 = begin / Tile::kRows * Tile::kRows; i0 < end; i0 += Tile::kRows) {
        barrier();  // the tiles before are read
        load_head<Tile>(q, data.q, head, dim, at.q_begin + i0, at.q_begin + at.q_count);
        load_head<Tile>(d_o, data.d_o, head, dim, at.q_begin + i0, at.q_begin + at.q_count);
        barrier();
        float dots[Tile::kCols], d_p[Tile::kCols];
        dot_rows<Tile>(dots, k, row, q, part, dim);
        dot_rows<Tile>(d_p, v, row, d_o, part, dim);
#pragma unroll
        for (int t = 0; t < Tile::kCols; ++t) {
          const int64_t i = i0 + part + 4 * t, last = i + at.offset();
          std::pair<float, float> g{0.f, 0.f};
          if (i < at.q_count && j <= last && j >= data.earliest(last))
            g = data.gradient(dots[t], d_p[t], data.lse[head * data.lse_stride + at.q_begin + i],
                              data.delta[head * data.rows + at.q_begin + i]);
          p[row * (Tile::kRows + 1) + part + 4 * t] = g.first;
          ds[row * (Tile::kRows + 1) + part + 4 * t] = g.second;
        }
        warp_barrier();  // a row's four threads are of one warp
        add_rows<Tile>(sums_v, p, row, d_o, part, dim);
        add_rows<Tile>(sums_k, ds, row, q, part, dim);
      }
    if (j >= at.k_count) return;
    store_head<Tile>(d_k[at.k_begin + j], kv_head, dim, part, sums_k, 1.f);
    store_head<Tile>(d_v[at.k_begin + j], kv_head, dim, part, sums_v, 1.f);
  }
};

// A block a tile of queries of one head: dQ, over the keys that it sees, in order.
template <class T, class Tile>
struct AttentionQueriesKernel {
  static constexpr int kThreads = Tile::kThreads;
  static constexpr size_t kShared = (4 * Tile::kSize + Tile::kScores) * sizeof(float) + 64;
  AttentionData<T> data;
  Rows<T> d_q;

  QLORA_DEVICE void operator()(SharedMemory shared) const {
    const Shared<float> q = shared.take<float>(Tile::kSize), d_o = shared.take<float>(Tile::kSize),
                        k = shared.take<float>(Tile::kSize), v = shared.take<float>(Tile::kSize),
                        ds = shared.take<float>(Tile::kScores);
    const AttentionPlace at = data.template place<Tile::kRows>(block_x(), false);
    const int head = block_y(), kv_head = head / data.group(), dim = data.shape.head_dim;
    const int row = thread() / 4, part = thread() % 4;
    const int64_t i = at.first + row, last = i + at.offset(), earliest = data.earliest(last);
    load_head<Tile>(q, data.q, head, dim, at.q_begin + at.first, at.q_begin + at.q_count);
    load_head<Tile>(d_o, data.d_o, head, dim, at.q_begin + at.first, at.q_begin + at.q_count);
    const bool inside = i < at.q_count;
    const float lse = inside ? data.lse[head * data.lse_stride + at.q_begin + i] : 0.f;
    const float delta = inside ? data.delta[head * data.rows + at.q_begin + i] : 0.f;

    float sums[Tile::kEach] = {};
    const int64_t begin = data.earliest(at.first + at.offset()), stop = at.first + Tile::kRows + at.offset();
    const int64_t end = stop < at.k_count ? stop : at.k_count;
    for (int64_t j0 = begin / Tile::kRows * Tile::kRows; j0 < end; j0 += Tile::kRows) {
      barrier();  // the tiles before are read
      load_head<Tile>(k, data.k, kv_head, dim, at.k_begin + j0, at.k_begin + at.k_count);
      load_head<Tile>(v, data.v, kv_head, dim, at.k_begin + j0, at.k_begin + at.k_count);
      barrier();
      float dots[Tile::kCols], d_p[Tile::kCols];
      dot_rows<Tile>(dots, q, row, k, part, dim);
      dot_rows<Tile>(d_p, d_o, row, v, part, dim);
#pragma unroll
      for (int t = 0; t < Tile::kCols; ++t) {
        const int64_t j = j0 + part + 4 * t;
        const bool seen = inside && j >= earliest && j <= last;
        ds[row * (Tile::kRows + 1) + part + 4 * t] =
            seen ? data.gradient(dots[t], d_p[t], lse, delta).second : 0.f;
      }
      warp_barrier();  // a row's four threads are of one warp
      add_rows<Tile>(sums, ds, row, k, part, dim);
    }
    if (inside) store_head<Tile>(d_q[at.q_begin + i], head, dim, part, sums, 1.f);
  }
};

}  // namespace
}  // namespace cuda

void attention::backward_cuda(Exec& e, const Args& a, const Segments& docs) {
  cuda::with_attention(a, [&](auto x, auto tile) {
    using T = decltype(x);
    using Tile = decltype(tile);
    const cuda::AttentionData<T> data = cuda::attention_data<T>(a, docs);
    using Delta = cuda::AttentionDeltaKernel<T>;
    constexpr int64_t kWarps = Delta::kThreads / cuda::kWarp;
    cuda::launch(
        e, {(a.q.rows * a.shape.q_heads + kWarps - 1) / kWarps}, 0,
        Delta{data.d_o, cuda::rows_of<T>(a.o), a.delta, a.q.rows, a.shape.q_heads, a.shape.head_dim});
    using Keys = cuda::AttentionKeysKernel<T, Tile>;
    cuda::launch(e, {cuda::attention_tiles<Tile>(docs.k), a.shape.kv_heads}, Keys::kShared,
                 Keys{data, cuda::rows_of<T>(a.d_k), cuda::rows_of<T>(a.d_v)});
    using Queries = cuda::AttentionQueriesKernel<T, Tile>;
    cuda::launch(e, {cuda::attention_tiles<Tile>(docs.q), a.shape.q_heads}, Queries::kShared,
                 Queries{data, cuda::rows_of<T>(a.d_q)});
  });
}

}  // namespace qlora
