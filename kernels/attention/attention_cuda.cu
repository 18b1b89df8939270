#include "kernels/attention/attention_bodies_cuda.h"
#include "kernels/cuda/reduce.h"
#include "kernels/cuda/rows.h"

namespace qlora {
namespace cuda {
namespace {

// delta = rowsum(d_o * o): a warp a row of one head.
template <class T>
struct AttentionDeltaKernel {
  static constexpr int kThreads = 128, kWarps = kThreads / kWarp;
  Rows<const T> d_o, o;
  float* delta;
  int64_t rows;
  int heads, dim;

  QLORA_DEVICE void operator()(SharedMemory) const {
    const int64_t at = int64_t{block_x()} * kWarps + warp();
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

}  // namespace
}  // namespace cuda

void attention::forward_cuda(Exec& e, const Args& a, const Segments& docs) {
  (a.q.dtype == DType::bf16 ? forward_bf16_cuda : forward_fp32_cuda)(e, a, docs);
}

void attention::backward_cuda(Exec& e, const Args& a, const Segments& docs) {
  cuda::with_type(a.q.dtype, [&](auto x) {
    using T = decltype(x);
    using Kernel = cuda::AttentionDeltaKernel<T>;
    const int64_t warps = a.q.rows * a.shape.q_heads;
    cuda::launch(e, {(warps + Kernel::kWarps - 1) / Kernel::kWarps}, 0,
                 Kernel{cuda::rows_of<T>(a.d_o), cuda::rows_of<T>(a.o), a.delta, a.q.rows, a.shape.q_heads,
                        a.shape.head_dim});
  });
  (a.q.dtype == DType::bf16 ? backward_bf16_cuda : backward_fp32_cuda)(e, a, docs);
}

}  // namespace qlora
