#pragma once
#include <cmath>
#include <cstdint>

#include "kernels/adamw/adamw.h"

namespace qlora::ref {

// The definition, one element.
template <class T>
void adamw(const AdamWHyper& h, T& p, T grad, T& m, T& v) {
  using std::sqrt;
  const T b1 = T(h.beta1), b2 = T(h.beta2);
  const T lr = T(h.lr);
  const double left1 = 1 - std::pow(h.beta1, static_cast<double>(h.step));
  const double left2 = std::sqrt(1 - std::pow(h.beta2, static_cast<double>(h.step)));
  const T g = grad * T(static_cast<double>(h.grad_scale));
  p *= T(1) - lr * T(h.weight_decay);
  m = b1 * m + (T(1) - b1) * g;
  v = b2 * v + (T(1) - b2) * g * g;
  p -= lr * T(left2 / left1) * m / (sqrt(v) + T(h.epsilon * left2));
}

template <class T>
void sgd(T lr, T weight_decay, T grad_scale, T& p, T grad) {
  p -= lr * (grad * grad_scale + weight_decay * p);
}

}  // namespace qlora::ref
