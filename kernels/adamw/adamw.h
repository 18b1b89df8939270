#pragma once
#include <cstdint>
#include <span>

#include "memory/exec.h"

namespace qlora {

struct AdamWHyper {
  double lr = 0, beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8, weight_decay = 0;
  int64_t step = 1;      // t, from 1
  float grad_scale = 1;  // multiplies every gradient first (clipping)
};

// One decoupled-decay Adam step (Loshchilov and Hutter 2019, arXiv:1711.05101) in bitsandbytes' form,
// everything fp32:
//   p *= 1 - lr*wd;  m, v moments of g*grad_scale;  p += -lr*sqrt(1-b2^t)/(1-b1^t) * m / (sqrt(v) +
//   eps*sqrt(1-b2^t))
// params, grads, m, v are flat spans of one length over all adapters; grads are left as they are. Scalars of
// the step are formed in double and rounded once.
void adamw(Exec& e, const AdamWHyper& hyper, std::span<float> params, std::span<const float> grads,
           std::span<float> m, std::span<float> v);

// p -= lr * (g*grad_scale + wd*p): torch's SGD without momentum.
void sgd(Exec& e, double lr, double weight_decay, float grad_scale, std::span<float> params,
         std::span<const float> grads);

}  // namespace qlora
