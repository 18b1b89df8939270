#include "kernels/cuda/reduce.h"
#include "kernels/cuda/rows.h"
#include "kernels/rms_norm/rms_norm_args.h"

namespace qlora {
namespace cuda {
namespace {

// A block a row.
template <class TX, class TY>
struct RmsNormForwardKernel {
  static constexpr int kThreads = 256;
  static constexpr size_t kShared = kThreads / kWarp * sizeof(float);
  Rows<const TX> x;
  const float* w;
  float offset, eps;
  Rows<TY> y;
  float* rstd;
  int64_t cols;

  QLORA_DEVICE void operator()(SharedMemory shared) const {
    const Shared<float> scratch = shared.take<float>(kThreads / kWarp);
    const TX* from = x[block_x()];
    TY* to = y[block_x()];
    float squares = 0;
    for (int64_t j = thread(); j < cols; j += kThreads) {
      const float v = to_float(from[j]);
      squares = fma(v, v, squares);
    }
    squares = block_sum<kThreads>(squares, scratch);
    const float r = 1.f / sqrt(squares / static_cast<float>(cols) + eps);
    if (thread() == 0 && rstd != nullptr) rstd[block_x()] = r;
    for (int64_t j = thread(); j < cols; j += kThreads)
      to[j] = from_float<TY>(to_float(from[j]) * r * (offset + w[j]));
  }
};

template <class TD, class TX, class TG>
struct RmsNormBackwardKernel {
  static constexpr int kThreads = 256;
  static constexpr size_t kShared = kThreads / kWarp * sizeof(float);
  Rows<const TD> dy;
  Rows<const TX> x;
  const float* w;
  float offset;
  const float* rstd;
  Rows<TG> dx;
  int64_t cols;

  QLORA_DEVICE void operator()(SharedMemory shared) const {
    const Shared<float> scratch = shared.take<float>(kThreads / kWarp);
    const TD* d = dy[block_x()];
    const TX* from = x[block_x()];
    TG* to = dx[block_x()];
    const float r = rstd[block_x()];
    float dot = 0;
    for (int64_t j = thread(); j < cols; j += kThreads)
      dot = fma(to_float(d[j]) * (offset + w[j]), to_float(from[j]), dot);
    dot = block_sum<kThreads>(dot, scratch);
    const float k = dot * r * r * r / static_cast<float>(cols);
    for (int64_t j = thread(); j < cols; j += kThreads) {
      const float g = fma(to_float(d[j]) * (offset + w[j]), r, -(to_float(from[j]) * k));
      to[j] = from_float<TG>(to_float(to[j]) + g);
    }
  }
};

}  // namespace
}  // namespace cuda

void rms_norm_cuda(Exec& e, const RmsNormForward& a) {
  cuda::with_type(a.x.dtype, [&](auto x) {
    cuda::with_type(a.y.dtype, [&](auto y) {
      using Kernel = cuda::RmsNormForwardKernel<decltype(x), decltype(y)>;
      cuda::launch(e, {a.x.rows}, Kernel::kShared,
                   Kernel{cuda::rows_of<decltype(x)>(a.x), a.w, a.offset, a.eps,
                          cuda::rows_of<decltype(y)>(a.y), a.rstd, a.x.cols});
    });
  });
}

void rms_norm_cuda(Exec& e, const RmsNormBackward& a) {
  cuda::with_type(a.dy.dtype, [&](auto dy) {
    cuda::with_type(a.x.dtype, [&](auto x) {
      cuda::with_type(a.dx.dtype, [&](auto dx) {
        using Kernel = cuda::RmsNormBackwardKernel<decltype(dy), decltype(x), decltype(dx)>;
        cuda::launch(e, {a.x.rows}, Kernel::kShared,
                     Kernel{cuda::rows_of<decltype(dy)>(a.dy), cuda::rows_of<decltype(x)>(a.x), a.w, a.offset,
                            a.rstd, cuda::rows_of<decltype(dx)>(a.dx), a.x.cols});
      });
    });
  });
}

}  // namespace qlora
