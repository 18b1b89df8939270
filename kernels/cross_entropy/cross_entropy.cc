#include "kernels/cross_entropy/cross_entropy.h"

#include "kernels/common/rows.h"
#include "kernels/cross_entropy/cross_entropy_args.h"

#define QLORA_BODY "kernels/cross_entropy/cross_entropy_cpu.inl"
#include "kernels/common/for_each_isa.h"

namespace qlora {

void cross_entropy(Exec& e, const ConstMat& logits, std::span<const int32_t> labels, float softcap,
                   const Mat& gradient, float grad_scale, std::span<float> loss, std::span<uint8_t> hit) {
  const auto rows = static_cast<size_t>(logits.rows);
  check(logits.dtype == DType::f32 && logits.cols > 0, "cross_entropy: logits are fp32");
  check(labels.size() == rows && loss.size() == rows && hit.size() == rows,
        "cross_entropy: one label, loss and hit a row");
  check(!gradient || (is_activation(gradient.dtype) && same_shape(gradient, logits)),
        "cross_entropy: the gradient is not like the logits");
  const double n = static_cast<double>(logits.rows) * logits.cols;
  if (!e.op("cross_entropy", (gradient ? 32 : 16) * n, logits.bytes() + 4. * rows,
            (gradient ? gradient.bytes() : 0.) + 5. * rows))
    return;
  for (int32_t label : labels)
    check(label >= 0 && label < logits.cols, "cross_entropy: label ", label, " of ", logits.cols);
  const CrossEntropyArgs a{logits, labels.data(), softcap, gradient, grad_scale, loss.data(), hit.data()};
  if (e.on_cuda()) return cross_entropy_cuda(e, a);
  const auto body = QLORA_PICK(cross_entropy_rows);
  parallel_ranges(e, logits.rows, rows_per_task(logits.cols),
                  [&](int64_t i, int64_t end) { body(a, i, end); });
}

}  // namespace qlora
