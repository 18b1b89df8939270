#pragma once
#include "kernels/adamw/adamw_args.h"
#include "kernels/cuda/device.h"

namespace qlora::cuda {

// adamw_lanes (adamw_cpu.inl), one element.
QLORA_DEVICE void adamw_element(const AdamWArgs& a, int64_t i) {
  const float g = a.grads[i] * a.grad_scale;
  const float m = fma(a.beta1, a.m[i], a.rest1 * g);
  const float v = fma(a.beta2, a.v[i], a.rest2 * g * g);
  a.m[i] = m;
  a.v[i] = v;
  a.params[i] = fma(a.rate, m / (sqrt(v) + a.epsilon), a.params[i] * a.decay);
}

}  // namespace qlora::cuda
