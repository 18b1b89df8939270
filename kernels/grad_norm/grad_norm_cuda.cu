#include "kernels/cuda/reduce.h"
#include "kernels/grad_norm/grad_norm_args.h"

namespace qlora {
namespace cuda {
namespace {

// A block a chunk of the numbers; or, of the chunks' sums, one block for all: a fixed order either way.
template <class T>
struct SumKernel {
  static constexpr int kThreads = 256;
  static constexpr size_t kShared = kThreads / kWarp * sizeof(double);
  const T* x;
  int64_t count, chunk;
  double* sums;

  QLORA_DEVICE static double term(float v) { return static_cast<double>(v) * static_cast<double>(v); }
  QLORA_DEVICE static double term(double sum) { return sum; }

  QLORA_DEVICE void operator()(SharedMemory shared) const {
    const Shared<double> scratch = shared.take<double>(kThreads / kWarp);
    const int64_t begin = block_x() * chunk, end = begin + chunk < count ? begin + chunk : count;
    double sum = 0;
    for (int64_t i = begin + thread(); i < end; i += kThreads) sum += term(x[i]);
    sum = block_sum<kThreads>(sum, scratch);
    if (thread() == 0) sums[block_x()] = sum;
  }
};

}  // namespace
}  // namespace cuda

double squares_cuda(Exec& e, std::span<const float> x, double* sums) {
  const auto n = static_cast<int64_t>(x.size());
  const int64_t chunks = (n + kNormChunk - 1) / kNormChunk;
  cuda::launch(e, {chunks}, cuda::SumKernel<float>::kShared,
               cuda::SumKernel<float>{x.data(), n, kNormChunk, sums});
  cuda::launch(e, {1}, cuda::SumKernel<double>::kShared,
               cuda::SumKernel<double>{sums, chunks, chunks, sums + chunks});
  double total = 0;
  e.stream().copy(&total, sums + chunks, sizeof total);
  e.stream().synchronize();
  return total;
}

}  // namespace qlora
