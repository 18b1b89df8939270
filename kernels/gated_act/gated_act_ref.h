#pragma once
#include <cmath>
#include <cstdint>

#include "kernels/gated_act/gated_act.h"

namespace qlora::ref {

inline constexpr double kGeluC = 0.7978845608028654;  // sqrt(2 / pi)
inline constexpr double kGeluCubic = 0.044715;

// The definitions: x / (1 + exp(-z)), with z = x for silu. gelu_tanh is x (1 + tanh(u)) / 2 with
// u = sqrt(2 / pi) (x + 0.044715 x^3), which is the same with z = 2u and loses no digits where tanh nears -1.
template <class T>
T activation_argument(Activation act, T x) {
  if (act == Activation::silu) return x;
  return T(2 * kGeluC) * (x + T(kGeluCubic) * x * x * x);
}

template <class T>
T activation(Activation act, T x) {
  using std::exp;
  return x / (T(1) + exp(-activation_argument(act, x)));
}

template <class T>
T activation_derivative(Activation act, T x) {
  using std::exp;
  const T s = T(1) / (T(1) + exp(-activation_argument(act, x)));
  const T slope = act == Activation::silu ? T(1) : T(2 * kGeluC) * (T(1) + T(3 * kGeluCubic) * x * x);
  return s + s * (T(1) - s) * x * slope;
}

template <class T>
void gated_act_forward(int64_t n, Activation act, const T* gate, const T* up, T* h) {
  for (int64_t i = 0; i < n; ++i) h[i] = activation(act, gate[i]) * up[i];
}

// d_gate = and d_up =
template <class T>
void gated_act_backward(int64_t n, Activation act, const T* d_h, const T* gate, const T* up, T* d_gate,
                        T* d_up) {
  for (int64_t i = 0; i < n; ++i) {
    const T g = gate[i], u = up[i], d = d_h[i];
    d_gate[i] = d * u * activation_derivative(act, g);
    d_up[i] = d * activation(act, g);
  }
}

}  // namespace qlora::ref
