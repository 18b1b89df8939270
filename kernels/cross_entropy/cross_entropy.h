#pragma once
#include <cstdint>
#include <span>

#include "memory/exec.h"
#include "memory/view.h"

namespace qlora {

// Softmax cross-entropy of a chunk of rows, all of them with a label: logits fp32 [R, V], labels [R] in [0,
// V).
//   loss[r] = log sum exp(logits[r]) - logits[r, labels[r]]         fp32 [R]
//   hit[r] = 1 where the first largest logit is the label           u8 [R]
// gradient (empty: not wanted) = (softmax(logits[r]) - onehot(labels[r])) * grad_scale, fp32 or bf16 [R, V],
// where grad_scale is 1 / the step's unmasked tokens. It may lie where the logits do, each row at the begin
// of its own (gradient_over), and is not read. softcap > 0: logits are softcap * tanh(raw / softcap) first,
// and the gradient is to raw.
void cross_entropy(Exec& e, const ConstMat& logits, std::span<const int32_t> labels, float softcap,
                   const Mat& gradient, float grad_scale, std::span<float> loss, std::span<uint8_t> hit);

// The gradient's place in the rows of fp32 logits.
inline Mat gradient_over(const Mat& logits, DType dtype) {
  return {logits.data, dtype, logits.rows, logits.cols,
          logits.stride * static_cast<int64_t>(sizeof(float) / size_of(dtype))};
}

}  // namespace qlora
