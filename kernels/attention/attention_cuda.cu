#include "kernels/attention/attention_tiles_cuda.h"

namespace qlora {
namespace cuda {
namespace {

// A block a tile of queries of one head; keys and values pass through one tile, in turn.
template <class T, class Tile>
struct AttentionForwardKernel {
  static constexpr int kThreads = Tile::kThreads;
  static constexpr size_t kShared = (2 * Tile::kSize + Tile::kScores) * sizeof(float) + 32;
  AttentionData<T> data;
  Rows<T> o;
  float* lse;  // null: not wanted

  QLORA_DEVICE void operator()(SharedMemory shared) const {
    const Shared<float> q = shared.take<float>(Tile::kSize), kv = shared.take<float>(Tile::kSize),
                        p = shared.take<float>(Tile::kScores);
    const AttentionPlace at = data.template place<Tile::kRows>(block_x(), false);
    const int head = block_y(), kv_head = head / data.group(), dim = data.shape.head_dim;
    const int row = thread() / 4, part = thread() % 4;
    const int64_t i = at.first + row, last = i + at.offset(), earliest = data.earliest(last);
    load_head<Tile>(q, data.q, head, dim, at.q_begin + at.first, at.q_begin + at.q_count);

    const float least = -__builtin_inff();
    float sums[Tile::kEach] = {}, top = least, total = 0;
    const int64_t begin = data.earliest(at.first + at.offset()), stop = at.first + Tile::kRows + at.offset();
    const int64_t end = stop < at.k_count ? stop : at.k_count;
    for (int64_t j0 = begin / Tile::kRows * Tile::kRows; j0 < end; j0 += Tile::kRows) {
      barrier();  // values of the tile before are read
      load_head<Tile>(kv, data.k, kv_head, dim, at.k_begin + j0, at.k_begin + at.k_count);
      barrier();
      float s[Tile::kCols];
      dot_rows<Tile>(s, q, row, kv, part, dim);
      float most = top;
#pragma unroll
      for (int t = 0; t < Tile::kCols; ++t) {
        const int64_t j = j0 + part + 4 * t;
        const bool seen = i < at.q_count && j >= earliest && j <= last;
        s[t] = seen ? data.capped(s[t] * data.shape.scale) : least;
        most = max(most, s[t]);
      }
      most = max(most, shuffle_xor(most, 1));
      most = max(most, shuffle_xor(most, 2));
      const float shrink = most == least ? 1.f : exp(top - most);
      float sum = 0;
#pragma unroll
      for (int t = 0; t < Tile::kCols; ++t) {
        s[t] = s[t] == least ? 0.f : exp(s[t] - most);
        sum += s[t];
        p[row * (Tile::kRows + 1) + part + 4 * t] = s[t];
      }
      sum += shuffle_xor(sum, 1);
      sum += shuffle_xor(sum, 2);
      total = fma(total, shrink, sum);
      top = most;
#pragma unroll
      for (int x = 0; x < Tile::kEach; ++x) sums[x] *= shrink;
      barrier();  // keys are read, p is there
      load_head<Tile>(kv, data.v, kv_head, dim, at.k_begin + j0, at.k_begin + at.k_count);
      barrier();
      add_rows<Tile>(sums, p, row, kv, part, dim);
    }
    if (i >= at.q_count) return;
    store_head<Tile>(o[at.q_begin + i], head, dim, part, sums, 1.f / total);
    if (lse != nullptr && part == 0) lse[head * data.lse_stride + at.q_begin + i] = top + log(total);
  }
};

}  // namespace
}  // namespace cuda

void attention::forward_cuda(Exec& e, const Args& a, const Segments& docs) {
  cuda::with_attention(a, [&](auto x, auto tile) {
    using T = decltype(x);
    using Tile = decltype(tile);
    using Kernel = cuda::AttentionForwardKernel<T, Tile>;
    cuda::launch(e, {cuda::attention_tiles<Tile>(docs.q), a.shape.q_heads}, Kernel::kShared,
                 Kernel{cuda::attention_data<T>(a, docs), cuda::rows_of<T>(a.out), a.lse_out});
  });
}

}  // namespace qlora
