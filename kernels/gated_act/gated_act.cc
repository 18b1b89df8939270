#include "kernels/gated_act/gated_act.h"

#include "kernels/common/fetch_ahead.h"
#include "kernels/common/rows.h"
#include "kernels/gated_act/gated_act_args.h"

#define QLORA_BODY "kernels/gated_act/gated_act_cpu.inl"
#include "kernels/common/for_each_isa.h"

namespace qlora {

void gated_act_forward(Exec& e, Activation act, const ConstMat& gate, const ConstMat& up, const Mat& h) {
  check(is_activation(gate.dtype) && up.dtype == gate.dtype && h.dtype == gate.dtype,
        "gated_act: gate, up and h share fp32 or bf16");
  check(same_shape(gate, up) && same_shape(gate, h), "gated_act: shapes differ");
  const double n = static_cast<double>(h.rows) * h.cols;
  if (!e.op("gated_act", 12 * n, gate.bytes() + up.bytes(), h.bytes())) return;
  const GatedAct a{act, {}, gate, up, h, {}};
  if (e.on_cuda()) return gated_act_forward_cuda(e, a);
  const auto body = QLORA_PICK(gated_act_forward_rows);
  parallel_ranges(e, h.rows, rows_per_task(h.cols), [&](int64_t i, int64_t end) { body(a, i, end); });
}

void gated_act_backward(Exec& e, Activation act, const ConstMat& d_h, const ConstMat& gate,
                        const ConstMat& up, const Mat& d_gate, const Mat& d_up) {
  check(is_activation(gate.dtype), "gated_act_backward: takes fp32 and bf16");
  for (const ConstMat& m : {d_h, up, ConstMat(d_gate), ConstMat(d_up)})
    check(m.dtype == gate.dtype && same_shape(m, gate), "gated_act_backward: shapes or types differ");
  const double n = static_cast<double>(gate.rows) * gate.cols;
  if (!e.op("gated_act_backward", 20 * n, 3 * gate.bytes(), 2 * gate.bytes())) return;
  const GatedAct a{act, d_h, gate, up, d_gate, d_up};
  if (e.on_cuda()) return gated_act_backward_cuda(e, a);
  const auto body = QLORA_PICK(gated_act_backward_rows);
  parallel_ranges(e, gate.rows, rows_per_task(gate.cols), [&](int64_t i, int64_t end) { body(a, i, end); });
}

}  // namespace qlora
