#include "kernels/attention/attention_bodies_cuda.h"
#include "kernels/attention/attention_mma_cuda.h"

namespace qlora {
namespace cuda {
namespace {

// A block has kOwn rows: of keys and values (kKeys: dK and dV), else of queries and d_o (dQ). The others
// come by in tiles of kOthers, two of them in flight; so p and ds are products own x others, whose rows are
// the block's own, and what is summed stays in registers: nothing is added up between warps or blocks.
// Heads of 256: dK and dV do not both fit there, other warps have the one and the other.
template <int kDim, bool kKeys>
struct AttentionBackwardKernel {
  static constexpr bool kApart = kKeys && kDim > 128;
  static constexpr int kOwn = kDim > 128 ? 64 : 128, kOthers = kDim > 128 ? 16 : 32;
  static constexpr int kThreads = kOwn * (kApart ? 4 : 2), kBlocks = kKeys || kDim > 64 ? 1 : 2;
  static constexpr int kStage = 2 * kOthers * kDim, kStatistics = kKeys ? 2 * kOthers : 0;
  static constexpr size_t kShared =
      (2 * kOwn * kDim + 2 * kStage) * sizeof(bf16) + 2 * kStatistics * sizeof(float);
  AttentionOperands a;
  const float *lse, *delta;
  int64_t lse_stride, rows;  // delta's stride is the count of all query rows
  Rows<bf16> d_own[2];       // of keys and values; of queries

  // What the block walks over: tiles of the others, for keys once for every query head of the group.
  struct Walk {
    AttentionPlace at;
    int window, begin, tiles, steps;
  };
  // Of a query; lse is infinite where there is none, so that p is 0.
  struct Statistics {
    float lse, delta;
  };
  struct Sums {
    float own[kKeys && !kApart ? 2 : 1][kDim / 8][4] = {};  // dK and dV, or one of them, or dQ
  };
  using Tile = float[kOthers / 8][4];

  QLORA_DEVICE void operator()(SharedMemory shared) const {
    const Shared<bf16> own = shared.take<bf16>(2 * kOwn * kDim), others = shared.take<bf16>(2 * kStage);
    const Shared<float> statistics = shared.take<float>(2 * kStatistics);
    const Walk walk = plan();
    const AttentionPlace& at = walk.at;
    const int begin = kKeys ? at.k_begin : at.q_begin, count = kKeys ? at.k_count : at.q_count;
    load_rows<kThreads, kOwn, kDim>(own, a.rows(kKeys ? a.k : a.q, begin, count, at.first, block_y()));
    load_rows<kThreads, kOwn, kDim>(own.from(kOwn * kDim),
                                    a.rows(kKeys ? a.v : a.d_o, begin, count, at.first, block_y()));
    if (walk.steps > 0) {
      load_others(others, walk, 0);
      put(statistics, kKeys ? fetch_of_step(walk, 0) : Statistics{});
    }
    commit_copies();
    wait_copies<0>();
    barrier();
    Statistics mine[2] = {};
    if constexpr (!kKeys)
      for (int half = 0; half < 2; ++half) {
        mine[half] = fetch(at, block_y(), at.first + warp() * 16 + tile_row(2 * half));
        mine[half].lse *= kLog2E;
      }
    Sums sums;
    for (int step = 0; step < walk.steps; ++step) {
      const int stage = step % 2;
      const bool more = step + 1 < walk.steps;
      Statistics next{};
      if (more) {
        load_others(others.from((1 - stage) * kStage), walk, step + 1);
        if constexpr (kKeys) next = fetch_of_step(walk, step + 1);
      }
      commit_copies();
      add(sums, own, others.from(stage * kStage), statistics.from(stage * kStatistics), mine, walk, step);
      if (more) put(statistics.from((1 - stage) * kStatistics), next);
      wait_copies<0>();
      barrier();  // the next step's tiles are there for all, and nobody reads this one's
    }
    finish(sums, begin + at.first, count - at.first);
  }

  QLORA_DEVICE Walk plan() const {
    Walk w{a.docs.place(block_x(), kKeys, kOwn), 0, 0, 0, 0};
    const AttentionPlace& at = w.at;
    w.window = a.window < at.k_count ? a.window : at.k_count;
    // Queries that see a key of the block's; keys that a query of the block's sees.
    const int low = kKeys ? at.first - at.offset() : at.first + at.offset() - w.window + 1;
    const int high = kKeys ? at.first + kOwn - 1 + w.window - at.offset() : at.first + kOwn + at.offset();
    const int count = kKeys ? at.q_count : at.k_count, end = high < count ? high : count;
    w.begin = low > 0 ? low / kOthers * kOthers : 0;
    w.tiles = end > w.begin ? (end - w.begin + kOthers - 1) / kOthers : 0;
    w.steps = w.tiles * (kKeys ? a.group : 1);
    return w;
  }

  QLORA_DEVICE int others_head(const Walk& w, int step) const {
    return kKeys ? block_y() * a.group + step / w.tiles : block_y() / a.group;
  }
  QLORA_DEVICE int others_first(const Walk& w, int step) const { return w.begin + step % w.tiles * kOthers; }

  QLORA_DEVICE void load_others(Shared<bf16> to, const Walk& w, int step) const {
    const int begin = kKeys ? w.at.q_begin : w.at.k_begin, count = kKeys ? w.at.q_count : w.at.k_count;
    const int first = others_first(w, step), head = others_head(w, step);
    load_rows<kThreads, kOthers, kDim>(to, a.rows(kKeys ? a.q : a.k, begin, count, first, head));
    load_rows<kThreads, kOthers, kDim>(to.from(kOthers * kDim),
                                       a.rows(kKeys ? a.d_o : a.v, begin, count, first, head));
  }

  QLORA_DEVICE Statistics fetch(const AttentionPlace& at, int head, int query) const {
    if (query >= at.q_count) return {-kNothing, 0.f};
    const int64_t row = at.q_begin + query;
    return {lse[head * lse_stride + row], delta[head * rows + row]};
  }
  // A thread's own of a step's queries; kept in a register while the step before is computed.
  QLORA_DEVICE Statistics fetch_of_step(const Walk& w, int step) const {
    if (thread() >= kOthers) return {};
    return fetch(w.at, others_head(w, step), others_first(w, step) + thread());
  }
  QLORA_DEVICE void put(Shared<float> to, const Statistics& s) const {
    if (!kKeys || thread() >= kOthers) return;
    to[thread()] = s.lse * kLog2E;
    to[kOthers + thread()] = s.delta;
  }

  // A step's part of the sums.
  QLORA_DEVICE void add(Sums& sums, Shared<bf16> own, Shared<bf16> others, Shared<float> statistics,
                        const Statistics (&mine)[2], const Walk& w, int step) const {
    const int row = warp() % (kOwn / 16) * 16;
    const bool values_only = kApart && warp() >= kOwn / 16;
    const int own_first = w.at.first + row + (kKeys ? 0 : w.at.offset());
    const int others_at = others_first(w, step) + (kKeys ? w.at.offset() : 0);
    const int key = kKeys ? own_first : others_at, position = kKeys ? others_at : own_first;
    const Sight sight(key, key + (kKeys ? 15 : kOthers - 1), position, position + (kKeys ? kOthers - 1 : 15),
                      w.window);
    if (!sight.any) return;
    Tile p = {}, ds = {};
    const Shared<bf16> second = others.from(kOthers * kDim);
    dot_rows<kDim, kOthers>(p, own, row, others);
    if (!values_only) dot_rows<kDim, kOthers>(ds, own.from(kOwn * kDim), row, second);
    weigh(p, ds, statistics, mine, key, position, w.window, sight.all);
    if constexpr (kApart) {
      if (values_only)
        add_rows<kDim, kOthers>(sums.own[0], p, second);
      else
        add_rows<kDim, kOthers>(sums.own[0], ds, others);
    } else {
      add_rows<kDim, kOthers>(sums.own[0], ds, others);
      if constexpr (kKeys) add_rows<kDim, kOthers>(sums.own[1], p, second);
    }
  }

  // q.k and d_o.v to p and ds (without the scale, which the sums get at the end).
  QLORA_DEVICE void weigh(Tile& p, Tile& ds, Shared<float> statistics, const Statistics (&mine)[2], int key,
                          int position, int window, bool all) const {
#pragma unroll
    for (int n = 0; n < kOthers / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = tile_row(i), col = tile_col(n, i);
        const Statistics s = kKeys ? Statistics{statistics[col], statistics[kOthers + col]} : mine[i / 2];
        float x = p[n][i], slope = 1;
        if (a.softcap > 0) {
          x = tanh(x * a.inner);
          slope = 1.f - x * x;
        }
        const bool seen = all || sees(position + (kKeys ? col : row), key + (kKeys ? row : col), window);
        p[n][i] = seen ? exp2(x * a.factor - s.lse) : 0.f;
        ds[n][i] = p[n][i] * (ds[n][i] - s.delta) * slope;
      }
  }

  QLORA_DEVICE void finish(const Sums& sums, int64_t first, int count) const {
    const int row = warp() % (kOwn / 16) * 16, col = block_y() * a.dim;
    const bool values = kApart && warp() >= kOwn / 16;
    const float factor = values ? 1.f : a.scale, factors[2] = {factor, factor}, ones[2] = {1, 1};
    store_rows<kDim>(values ? d_own[1] : d_own[0], first + row, count - row, col, a.dim, sums.own[0],
                     factors);
    if constexpr (kKeys && !kApart)
      store_rows<kDim>(d_own[1], first + row, count - row, col, a.dim, sums.own[1], ones);
  }
};

template <bool kKeys>
void launch_backward(Exec& e, const attention::Args& args, const Segments& docs) {
  with_head(args.dim(), [&](auto dim) {
    using Kernel = AttentionBackwardKernel<dim, kKeys>;
    const int heads = kKeys ? args.shape.kv_heads : args.shape.q_heads;
    for_each_launch(docs, kKeys, Kernel::kOwn, [&](const AttentionDocuments& documents, int blocks) {
      launch(e, {blocks, heads}, Kernel::kShared,
             Kernel{{args, documents},
                    args.lse,
                    args.delta,
                    args.lse_stride,
                    args.q.rows,
                    {rows_of<bf16>(kKeys ? args.d_k : args.d_q), rows_of<bf16>(args.d_v)}});
    });
  });
}

}  // namespace
}  // namespace cuda

void attention::backward_bf16_cuda(Exec& e, const Args& args, const Segments& docs) {
  cuda::launch_backward<true>(e, args, docs);
  cuda::launch_backward<false>(e, args, docs);
}

}  // namespace qlora
