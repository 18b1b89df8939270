#include "kernels/attention/attention_step.h"

#include "kernels/attention/attention_step_args.h"
#include "kernels/common/rows.h"

#define QLORA_BODY "kernels/attention/attention_step_cpu.inl"
#include "kernels/common/for_each_isa.h"

namespace qlora {

void attention_step(Exec& e, const AttentionShape& s, const ConstMat& q, const ConstMat& k, const ConstMat& v,
                    const Mat& o) {
  check(q.rows == 0 || (q.rows == 1 && k.rows > 0), "attention_step: ", q.rows, " queries, ", k.rows,
        " keys");
  check(s.kv_heads > 0 && s.q_heads > 0 && s.q_heads % s.kv_heads == 0 && s.head_dim > 0,
        "attention_step: ", s.q_heads, " query heads over ", s.kv_heads);
  check(is_activation(q.dtype) && k.dtype == q.dtype && v.dtype == q.dtype && o.dtype == q.dtype,
        "attention_step: q, k, v, o share a type");
  check(q.cols == int64_t{s.q_heads} * s.head_dim && k.cols == int64_t{s.kv_heads} * s.head_dim &&
            same_shape(k, v) && same_shape(q, o),
        "attention_step: q, k, v, o do not fit the heads");
  check(!e.on_cuda() || (s.head_dim % 8 == 0 && s.head_dim <= 256), "attention_step: head_dim ", s.head_dim);
  attention::StepArgs on_cuda{s, q, k, v, o, nullptr};
  const size_t floats =
      e.on_cuda() ? on_cuda.step_floats() : static_cast<size_t>(s.q_heads * (k.rows + s.head_dim));
  const Buffer scores = e.allocate(Region::workspace, "attention scores", floats * sizeof(float));
  const double seen = static_cast<double>(s.window > 0 ? std::min<int64_t>(s.window, k.rows) : k.rows) *
                      static_cast<double>(s.q_heads * q.rows);
  if (!e.op("attention", 4 * seen * s.head_dim, q.bytes() + k.bytes() + v.bytes(), o.bytes())) return;
  if (q.rows == 0) return;
  on_cuda.parts = scores.as<float>();
  if (e.on_cuda()) return attention::step_cuda(e, on_cuda);
  const auto head = QLORA_PICK(attention_step_head);
  e.parallel(s.q_heads,
             [&](int64_t h, int) { head(s, q, k, v, o, h, scores.as<float>() + h * (k.rows + s.head_dim)); });
}

}  // namespace qlora
