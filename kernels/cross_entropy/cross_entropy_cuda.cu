#include "kernels/cross_entropy/cross_entropy_args.h"
#include "kernels/cuda/reduce.h"
#include "kernels/cuda/rows.h"

namespace qlora {
namespace cuda {
namespace {

// A block a row, which it reads three times (out of its cache, where a row of the vocabulary fits): largest
// score, sum of exponentials, gradient. A thread's sum is fp32 over its share of the row, their sum is
// double.
template <class T>
struct CrossEntropyKernel {
  static constexpr int kThreads = 256, kWarps = kThreads / kWarp;
  static constexpr size_t kShared = kWarps * (sizeof(float) + sizeof(double));
  static constexpr int kEach = 8;  // elements of a thread that are read before any is written over
  Rows<const float> logits;
  int64_t vocab;
  const int32_t* labels;
  float softcap;
  Rows<T> gradient;  // null data: not wanted
  float grad_scale;
  float* loss;
  uint8_t* hit;

  QLORA_DEVICE float score(float x) const { return softcap > 0 ? softcap * tanh(x / softcap) : x; }

  QLORA_DEVICE void operator()(SharedMemory shared) const {
    const Shared<float> most = shared.take<float>(kWarps);
    const Shared<double> scratch = shared.take<double>(kWarps);
    const float* row = logits[block_x()];
    const int64_t label = labels[block_x()];
    const float least = -__builtin_inff();
    float before = least, after = least;
    for (int64_t j = thread(); j < vocab; j += kThreads) {
      if (j < label) before = max(before, score(row[j]));
      if (j > label) after = max(after, score(row[j]));
    }
    before = block_max<kThreads>(before, most);
    after = block_max<kThreads>(after, most);
    const float at = score(row[label]), top = max(at, max(before, after));
    float part = 0;
    for (int64_t j = thread(); j < vocab; j += kThreads) part += exp(score(row[j]) - top);
    const double total = block_sum<kThreads>(static_cast<double>(part), scratch);
    if (thread() == 0) {
      loss[block_x()] = static_cast<float>(log(total) + (static_cast<double>(top) - at));
      hit[block_x()] = at > before && at >= after;
    }
    if (gradient.data != nullptr) write_gradient(row, label, at, top, total);
  }

  // The gradient may lie over the logits, from the row's begin, in narrower elements: what is written over
  // has been read by all.
  QLORA_DEVICE void write_gradient(const float* row, int64_t label, float at, float top, double total) const {
    T* out = gradient[block_x()];
    const float factor = static_cast<float>(grad_scale / total);
    for (int64_t begin = 0; begin < vocab; begin += kEach * kThreads) {
      float scores[kEach];
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        const int64_t j = begin + i * kThreads + thread();
        scores[i] = j < vocab ? score(row[j]) : 0.f;
      }
      barrier();
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        const int64_t j = begin + i * kThreads + thread();
        if (j < vocab)
          out[j] = from_float<T>(j == label ? at_label(at, top, total) : slope(scores[i], top, factor));
      }
    }
  }

  QLORA_DEVICE float slope(float s, float top, float factor) const {
    const float g = exp(s - top) * factor;
    if (softcap <= 0) return g;
    const float t = s / softcap;
    return g * (1.f - t * t);
  }

  // 1 is subtracted before the scale, so that a sure label's gradient does not lose p in the rounding.
  QLORA_DEVICE float at_label(float s, float top, double total) const {
    double g = (exp(static_cast<double>(s) - top) / total - 1.) * grad_scale;
    if (softcap > 0) {
      const double t = static_cast<double>(s) / softcap;
      g *= 1. - t * t;
    }
    return static_cast<float>(g);
  }
};

}  // namespace
}  // namespace cuda

void cross_entropy_cuda(Exec& e, const CrossEntropyArgs& a) {
  cuda::with_type(a.gradient.dtype, [&](auto g) {
    using T = decltype(g);
    using Kernel = cuda::CrossEntropyKernel<T>;
    cuda::launch(e, {a.logits.rows}, Kernel::kShared,
                 Kernel{cuda::rows_of<float>(a.logits), a.logits.cols, a.labels, a.softcap,
                        cuda::rows_of<T>(a.gradient), a.grad_scale, a.loss, a.hit});
  });
}

}  // namespace qlora
