#include "kernels/rms_norm/rms_norm.h"

#include "kernels/common/fetch_ahead.h"
#include "kernels/common/rows.h"
#include "kernels/rms_norm/rms_norm_args.h"

#define QLORA_BODY "kernels/rms_norm/rms_norm_cpu.inl"
#include "kernels/common/for_each_isa.h"

namespace qlora {

void rms_norm_forward(Exec& e, const ConstMat& x, const float* w, float offset, float eps, const Mat& y,
                      float* rstd) {
  check(is_activation(x.dtype) && is_activation(y.dtype), "rms_norm: takes fp32 and bf16");
  check(same_shape(x, y) && x.cols > 0, "rms_norm: x and y differ in shape");
  const double n = static_cast<double>(x.rows) * x.cols;
  if (!e.op("rms_norm", 4 * n, x.bytes() + 4. * x.cols, y.bytes() + (rstd ? 4. * x.rows : 0.))) return;
  const RmsNormForward a{x, w, offset, eps, y, rstd};
  if (e.on_cuda()) return rms_norm_cuda(e, a);
  const auto body = QLORA_PICK(rms_norm_forward_rows);
  parallel_ranges(e, x.rows, rows_per_task(x.cols), [&](int64_t i, int64_t end) { body(a, i, end); });
}

void rms_norm_backward(Exec& e, const ConstMat& dy, const ConstMat& x, const float* w, float offset,
                       const float* rstd, const Mat& dx) {
  check(is_activation(dy.dtype) && is_activation(x.dtype) && is_activation(dx.dtype),
        "rms_norm_backward: takes fp32 and bf16");
  check(same_shape(dy, x) && same_shape(dx, x) && x.cols > 0, "rms_norm_backward: shapes differ");
  const double n = static_cast<double>(x.rows) * x.cols;
  if (!e.op("rms_norm_backward", 8 * n, dy.bytes() + x.bytes() + dx.bytes() + 4. * (x.cols + x.rows),
            dx.bytes()))
    return;
  const RmsNormBackward a{dy, x, w, offset, rstd, dx};
  if (e.on_cuda()) return rms_norm_cuda(e, a);
  const auto body = QLORA_PICK(rms_norm_backward_rows);
  parallel_ranges(e, x.rows, rows_per_task(x.cols), [&](int64_t i, int64_t end) { body(a, i, end); });
}

}  // namespace qlora
