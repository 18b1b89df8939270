#include "kernels/adamw/adamw_element.h"

namespace qlora {
namespace cuda {
namespace {

struct AdamWKernel {
  static constexpr int kThreads = 256;
  AdamWArgs a;
  int64_t n;
  QLORA_DEVICE void operator()(SharedMemory) const {
    const int64_t i = int64_t{block_x()} * kThreads + thread();
    if (i < n) adamw_element(a, i);
  }
};

struct SgdKernel {
  static constexpr int kThreads = 256;
  SgdArgs a;
  int64_t n;
  QLORA_DEVICE void operator()(SharedMemory) const {
    const int64_t i = int64_t{block_x()} * kThreads + thread();
    if (i < n)
      a.params[i] = fma(-a.lr, fma(a.weight_decay, a.params[i], a.grads[i] * a.grad_scale), a.params[i]);
  }
};

template <class Kernel>
void launch_over(Exec& e, const Kernel& kernel) {
  launch(e, {(kernel.n + Kernel::kThreads - 1) / Kernel::kThreads}, 0, kernel);
}

}  // namespace
}  // namespace cuda

void adamw_cuda(Exec& e, const AdamWArgs& a, int64_t n) { cuda::launch_over(e, cuda::AdamWKernel{a, n}); }
void sgd_cuda(Exec& e, const SgdArgs& a, int64_t n) { cuda::launch_over(e, cuda::SgdKernel{a, n}); }

}  // namespace qlora
