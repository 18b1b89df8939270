#include <bit>

#include "kernels/attention/attention_step_args.h"
#include "kernels/cuda/reduce.h"
#include "kernels/cuda/rows.h"

// One query over a cache: memory bounds it, so multiply-adds do. A block reads keys and values once for up to
// four query heads that share them.
namespace qlora {
namespace cuda {
namespace {

constexpr int kPart = static_cast<int>(attention::kStepKeys);

struct [[gnu::may_alias]] alignas(16) Sixteen {
  uint32_t words[4];
};

// Eight elements of a row.
QLORA_DEVICE void load_eight(const bf16* from, bool on_16, float (&to)[8]) {
  if (on_16) {
    const Sixteen eight = *reinterpret_cast<const Sixteen*>(from);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      to[2 * i] = std::bit_cast<float>(eight.words[i] << 16);
      to[2 * i + 1] = std::bit_cast<float>(eight.words[i] & 0xffff0000u);
    }
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) to[i] = to_float(from[i]);
  }
}
QLORA_DEVICE void load_eight(const float* from, bool on_16, float (&to)[8]) {
#pragma unroll
  for (int half = 0; half < 8; half += 4) {
    if (on_16) {
      const Sixteen four = *reinterpret_cast<const Sixteen*>(from + half);
#pragma unroll
      for (int i = 0; i < 4; ++i) to[half + i] = std::bit_cast<float>(four.words[i]);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) to[half + i] = from[half + i];
    }
  }
}

// A part's results of a head: sums [dim], largest score, sum of weights.
struct StepParts {
  float* data;
  int heads, dim;
  QLORA_DEVICE float* of(int part, int head) const {
    return data + (int64_t{part} * heads + head) * (dim + 2);
  }
};

// A block: kPart keys of one key head, up to kHeads of the query heads that share it. A key has kDim / 8
// lanes, with eight elements each.
template <class T, int kDim>
struct AttentionStepKernel {
  static constexpr int kThreads = 128, kWarps = kThreads / kWarp, kHeads = 4;
  static constexpr int kLanes = kDim / 8, kAtOnce = kThreads / kLanes;
  static constexpr size_t kShared = (kHeads * (kPart + 2) + kWarps * kHeads * kDim) * sizeof(float);
  static_assert(kLanes <= kWarp && kHeads == kWarps);  // a warp a head's softmax
  AttentionShape shape;
  const T* q;
  Rows<const T> k, v;
  T* o;
  StepParts parts;
  int first, keys, part_count, blocks_a_head;
  bool on_16;  // rows of k and v begin on 16 bytes

  QLORA_DEVICE void operator()(SharedMemory shared) const {
    const Shared<float> scores = shared.take<float>(kHeads * kPart), totals = shared.take<float>(2 * kHeads),
                        sums = shared.take<float>(kWarps * kHeads * kDim);
    const int group = shape.q_heads / shape.kv_heads, kv_head = block_x() / blocks_a_head;
    const int among = block_x() % blocks_a_head * kHeads, head = kv_head * group + among;
    const int heads = group - among < kHeads ? group - among : kHeads;
    const int begin = first + block_y() * kPart, count = keys - begin < kPart ? keys - begin : kPart;
    const int64_t at = int64_t{kv_head} * shape.head_dim;
    score(scores, head, heads, begin, count, at);
    barrier();
    softmax(scores, totals, count);
    barrier();
    add_values(scores, sums, begin, count, at);
    barrier();
    store(sums, totals, head, heads);
  }

  QLORA_DEVICE static int column() { return lane() % kLanes * 8; }
  QLORA_DEVICE static int turn() { return thread() / kLanes; }  // among keys that go side by side

  QLORA_DEVICE void score(Shared<float> scores, int head, int heads, int begin, int count, int64_t at) const {
    const bool inside = column() < shape.head_dim;
    float query[kHeads][8] = {};
#pragma unroll
    for (int h = 0; h < kHeads; ++h)
      if (h < heads && inside) {
#pragma unroll
        for (int i = 0; i < 8; ++i) query[h][i] = to_float(q[(head + h) * shape.head_dim + column() + i]);
      }
    for (int j0 = 0; j0 < count; j0 += kAtOnce) {
      const int j = j0 + turn();
      float key[8] = {};
      if (j < count && inside) load_eight(k[begin + j] + at + column(), on_16, key);
#pragma unroll
      for (int h = 0; h < kHeads; ++h) {
        float dot = 0;
#pragma unroll
        for (int i = 0; i < 8; ++i) dot = fma(query[h][i], key[i], dot);
#pragma unroll
        for (int mask = kLanes / 2; mask > 0; mask /= 2) dot += shuffle_xor(dot, mask);
        if (column() != 0 || j >= count) continue;
        const float x = dot * shape.scale;
        scores[h * kPart + j] = shape.softcap > 0 ? shape.softcap * tanh(x / shape.softcap) : x;
      }
    }
  }

  // A warp a head: scores to exp(score - largest).
  QLORA_DEVICE void softmax(Shared<float> scores, Shared<float> totals, int count) const {
    const int row = warp() * kPart;
    float top = -__builtin_inff(), total = 0;  // a lane reads no score but those that it writes
    for (int j = lane(); j < count; j += kWarp) top = max(top, scores[row + j]);
    top = warp_max(top);
    for (int j = lane(); j < count; j += kWarp) {
      const float p = exp(scores[row + j] - top);
      scores[row + j] = p;
      total += p;
    }
    total = warp_sum(total);
    if (lane() != 0) return;
    totals[2 * warp()] = top;
    totals[2 * warp() + 1] = total;
  }

  QLORA_DEVICE void add_values(Shared<float> scores, Shared<float> sums, int begin, int count,
                               int64_t at) const {
    float own[kHeads][8] = {};
    for (int j = turn(); j < count; j += kAtOnce) {
      float value[8] = {};
      if (column() < shape.head_dim) load_eight(v[begin + j] + at + column(), on_16, value);
#pragma unroll
      for (int h = 0; h < kHeads; ++h) {
        const float p = scores[h * kPart + j];
#pragma unroll
        for (int i = 0; i < 8; ++i) own[h][i] = fma(p, value[i], own[h][i]);
      }
    }
#pragma unroll
    for (int h = 0; h < kHeads; ++h)
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        float sum = own[h][i];
#pragma unroll
        for (int mask = kLanes; mask < kWarp; mask *= 2) sum += shuffle_xor(sum, mask);
        if (lane() < kLanes) sums[(warp() * kHeads + h) * kDim + column() + i] = sum;
      }
  }

  // The warps' sums, added in order.
  QLORA_DEVICE void store(Shared<float> sums, Shared<float> totals, int head, int heads) const {
    const int dim = shape.head_dim;
    for (int i = thread(); i < heads * dim; i += kThreads) {
      const int h = i / dim, c = i % dim;
      float sum = sums[h * kDim + c];
      for (int w = 1; w < kWarps; ++w) sum += sums[(w * kHeads + h) * kDim + c];
      if (part_count == 1)
        o[(head + h) * dim + c] = from_float<T>(sum / totals[2 * h + 1]);
      else
        parts.of(block_y(), head + h)[c] = sum;
    }
    if (part_count > 1 && thread() < heads)
      for (int i = 0; i < 2; ++i) parts.of(block_y(), head + thread())[dim + i] = totals[2 * thread() + i];
  }
};

// A block a head: its parts, each brought to the largest score, added in order.
template <class T>
struct AttentionStepPartsKernel {
  static constexpr int kThreads = 128;
  StepParts parts;
  int count;
  T* o;

  QLORA_DEVICE void operator()(SharedMemory) const {
    const int head = block_x(), dim = parts.dim;
    float top = parts.of(0, head)[dim];
    for (int p = 1; p < count; ++p) top = max(top, parts.of(p, head)[dim]);
    for (int c = thread(); c < dim; c += kThreads) {
      float sum = 0, total = 0;
      for (int p = 0; p < count; ++p) {
        const float* const part = parts.of(p, head);
        const float factor = exp(part[dim] - top);
        sum = fma(part[c], factor, sum);
        total = fma(part[dim + 1], factor, total);
      }
      o[head * dim + c] = from_float<T>(sum / total);
    }
  }
};

template <class T, int kDim>
void launch_step(Exec& e, const attention::StepArgs& a) {
  using Kernel = AttentionStepKernel<T, kDim>;
  const AttentionShape& s = a.shape;
  const StepParts parts{a.parts, s.q_heads, s.head_dim};
  const int group = s.q_heads / s.kv_heads, blocks = (group + Kernel::kHeads - 1) / Kernel::kHeads;
  const auto part_count = static_cast<int>(a.part_count());
  bool on_16 = true;
  for (const ConstMat& m : {a.k, a.v})
    on_16 = on_16 && reinterpret_cast<uintptr_t>(m.data) % 16 == 0 &&
            m.stride * static_cast<int64_t>(sizeof(T)) % 16 == 0;
  launch(
      e, {int64_t{s.kv_heads} * blocks, part_count}, Kernel::kShared,
      Kernel{s, static_cast<const T*>(a.q.data), rows_of<T>(a.k), rows_of<T>(a.v), static_cast<T*>(a.o.data),
             parts, static_cast<int>(a.first()), static_cast<int>(a.k.rows), part_count, blocks, on_16});
  if (part_count > 1)
    launch(e, {s.q_heads}, 0, AttentionStepPartsKernel<T>{parts, part_count, static_cast<T*>(a.o.data)});
}

}  // namespace
}  // namespace cuda

void attention::step_cuda(Exec& e, const StepArgs& a) {
  cuda::with_type(a.q.dtype, [&](auto x) {
    using T = decltype(x);
    if (a.shape.head_dim <= 64)
      cuda::launch_step<T, 64>(e, a);
    else if (a.shape.head_dim <= 128)
      cuda::launch_step<T, 128>(e, a);
    else
      cuda::launch_step<T, 256>(e, a);
  });
}

}  // namespace qlora
