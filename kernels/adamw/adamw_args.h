#pragma once
#include <cmath>

#include "kernels/adamw/adamw.h"

namespace qlora {

// What the bodies take: scalars of the step, formed in double and rounded once.
struct AdamWArgs {
  float* params;
  const float* grads;
  float *m, *v;
  float grad_scale, beta1, rest1, beta2, rest2, decay, rate, epsilon;
};

struct SgdArgs {
  float* params;
  const float* grads;
  float lr, weight_decay, grad_scale;
};

void adamw_cuda(Exec& e, const AdamWArgs& a, int64_t n);
void sgd_cuda(Exec& e, const SgdArgs& a, int64_t n);

inline AdamWArgs adamw_args(const AdamWHyper& h, float* params, const float* grads, float* m, float* v) {
  const double t = static_cast<double>(h.step);
  const double correction1 = 1 - std::pow(h.beta1, t), correction2 = std::sqrt(1 - std::pow(h.beta2, t));
  AdamWArgs a{params, grads, m, v, h.grad_scale, 0, 0, 0, 0, 0, 0, 0};
  a.beta1 = static_cast<float>(h.beta1);
  a.rest1 = static_cast<float>(1 - h.beta1);
  a.beta2 = static_cast<float>(h.beta2);
  a.rest2 = static_cast<float>(1 - h.beta2);
  a.decay = static_cast<float>(1 - h.lr * h.weight_decay);
  a.rate = static_cast<float>(-h.lr * correction2 / correction1);
  a.epsilon = static_cast<float>(h.epsilon * correction2);
  return a;
}

}  // namespace qlora
