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
// With write_gradient, logits become their gradient: (softmax(logits[r]) - onehot(labels[r])) * grad_scale,
// where grad_scale is 1 / the step's unmasked tokens. softcap > 0: logits are softcap * tanh(raw / softcap)
// first, and the gradient is to raw.
void cross_entropy(Exec& e, const Mat& logits, std::span<const int32_t> labels, float softcap,
                   bool write_gradient, float grad_scale, std::span<float> loss, std::span<uint8_t> hit);

}  // namespace qlora
