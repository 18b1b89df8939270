#include "kernels/attention/attention_bodies_cuda.h"
#include "kernels/attention/attention_mma_cuda.h"

namespace qlora {
namespace cuda {
namespace {

// A block 64 queries of one head, a warp 16 of them. While a tile of keys is multiplied, its values arrive;
// while these are, the next keys.
template <int kDim>
struct AttentionForwardKernel {
  static constexpr int kThreads = 128, kQueries = 64, kKeys = kDim > 128 ? 32 : 64;
  static constexpr int kBlocks = kDim > 128 ? 2 : kDim > 64 ? 3 : 4;
  static constexpr size_t kShared = (kQueries + 2 * kKeys) * kDim * sizeof(bf16);
  AttentionOperands a;
  Rows<bf16> o;
  float* lse;  // null: not wanted
  int64_t lse_stride;

  // Of the rows that a lane has elements of: sums are of its own columns until the end.
  struct State {
    float sums[kDim / 8][4] = {}, top[2] = {kNothing, kNothing}, total[2] = {0, 0};
  };

  QLORA_DEVICE void operator()(SharedMemory shared) const {
    const Shared<bf16> q = shared.take<bf16>(kQueries * kDim), k = shared.take<bf16>(kKeys * kDim),
                       v = shared.take<bf16>(kKeys * kDim);
    const AttentionPlace at = a.docs.place(block_x(), false, kQueries);
    const int head = block_y(), kv_head = head / a.group, row = warp() * 16;
    const int window = a.window < at.k_count ? a.window : at.k_count;
    const int first = at.first + at.offset();  // where the block's first query stands
    const int end = first + kQueries < at.k_count ? first + kQueries : at.k_count;
    const int begin = first < window ? 0 : (first - window + 1) / kKeys * kKeys;
    load_rows<kThreads, kQueries, kDim>(q, a.rows(a.q, at.q_begin, at.q_count, at.first, head));
    load_rows<kThreads, kKeys, kDim>(k, a.rows(a.k, at.k_begin, at.k_count, begin, kv_head));
    commit_copies();
    State state;
    for (int j = begin; j < end; j += kKeys) {
      wait_copies<0>();
      barrier();  // keys are there for all, and nobody reads the former values
      load_rows<kThreads, kKeys, kDim>(v, a.rows(a.v, at.k_begin, at.k_count, j, kv_head));
      commit_copies();
      float p[kKeys / 8][4] = {};
      dot_rows<kDim, kKeys>(p, q, row, k);
      wait_copies<0>();
      barrier();  // values are there for all, and nobody reads the keys
      if (j + kKeys < end)
        load_rows<kThreads, kKeys, kDim>(k, a.rows(a.k, at.k_begin, at.k_count, j + kKeys, kv_head));
      commit_copies();
      score(p, first + row, j, window);
      softmax(p, state);
      add_rows<kDim, kKeys>(state.sums, p, v);
    }
    finish(state, at, head, row);
  }

  // Products to scores of base 2.
  QLORA_DEVICE void score(float (&p)[kKeys / 8][4], int position, int key, int window) const {
    const Sight sight(key, key + kKeys - 1, position, position + 15, window);
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (a.softcap > 0) p[n][i] = tanh(p[n][i] * a.inner);
        p[n][i] *= a.factor;
        if (!sight.all && !sees(position + tile_row(i), key + tile_col(n, i), window)) p[n][i] = kNothing;
      }
  }

  // Scores to weights; what was summed so far is brought to their maximum.
  QLORA_DEVICE void softmax(float (&p)[kKeys / 8][4], State& state) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float top = state.top[half];
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) top = max(top, max(p[n][2 * half], p[n][2 * half + 1]));
      top = max(top, shuffle_xor(top, 1));
      top = max(top, shuffle_xor(top, 2));
      const float base = top == kNothing ? 0.f : top;  // none seen yet
      const float shrink = exp2(state.top[half] - base);
      state.top[half] = top;
      state.total[half] *= shrink;
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        state.sums[n][2 * half] *= shrink;
        state.sums[n][2 * half + 1] *= shrink;
      }
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
        for (int i = 2 * half; i < 2 * half + 2; ++i) {
          p[n][i] = exp2(p[n][i] - base);
          state.total[half] += p[n][i];
        }
    }
  }

  QLORA_DEVICE void finish(const State& state, const AttentionPlace& at, int head, int row) const {
    float factors[2];
    const int count = at.q_count - (at.first + row);
    const int64_t first = at.q_begin + at.first + row;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float total = state.total[half];
      total += shuffle_xor(total, 1);
      total += shuffle_xor(total, 2);
      factors[half] = 1.f / total;
      if (lse != nullptr && lane() % 4 == 0 && tile_row(2 * half) < count)
        lse[head * lse_stride + first + tile_row(2 * half)] = fma(state.top[half], kLn2, log(total));
    }
    store_rows<kDim>(o, first, count, head * a.dim, a.dim, state.sums, factors);
  }
};

}  // namespace
}  // namespace cuda

void attention::forward_bf16_cuda(Exec& e, const Args& args, const Segments& docs) {
  cuda::with_head(args.dim(), [&](auto dim) {
    using Kernel = cuda::AttentionForwardKernel<dim>;
    cuda::for_each_launch(docs, false, Kernel::kQueries, [&](const auto& documents, int blocks) {
      cuda::launch(e, {blocks, args.shape.q_heads}, Kernel::kShared,
                   Kernel{{args, documents}, cuda::rows_of<bf16>(args.out), args.lse_out, args.lse_stride});
    });
  });
}

}  // namespace qlora
