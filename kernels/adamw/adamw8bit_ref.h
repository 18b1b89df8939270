#pragma once
#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels/adamw/adamw8bit.h"
#include "quant/codebook.h"

namespace qlora::ref {

// The definition, one block of n <= kBlock8 elements. In float it is the arithmetic itself, bit for bit.
template <class T>
void adamw8bit_block(const AdamWHyper& h, float* p, const float* grads, uint8_t* m_codes, uint8_t* v_codes,
                     float& m_absmax, float& v_absmax, int64_t n) {
  using std::sqrt;
  const float *map_m = dynamic_map(true).data(), *map_v = dynamic_map(false).data();
  const double left1 = 1 - std::pow(h.beta1, static_cast<double>(h.step));
  const double left2 = std::sqrt(1 - std::pow(h.beta2, static_cast<double>(h.step)));
  std::vector<float> m(static_cast<size_t>(n)), v(m);
  for (int64_t i = 0; i < n; ++i) {
    const T g = T(grads[i]) * T(h.grad_scale);
    const T fresh_m = T(map_m[m_codes[i]] * m_absmax) * T(h.beta1) + T(1 - h.beta1) * g;
    const T fresh_v = T(map_v[v_codes[i]] * v_absmax) * T(h.beta2) + T(1 - h.beta2) * g * g;
    if (!is_finite(static_cast<float>(fresh_v))) continue;
    const T decayed = T(p[i]) * T(1 - h.lr * h.weight_decay);
    p[i] = static_cast<float>(decayed +
                              T(-h.lr * left2 / left1) * (fresh_m / (sqrt(fresh_v) + T(h.epsilon * left2))));
    m[static_cast<size_t>(i)] = static_cast<float>(fresh_m);
    v[static_cast<size_t>(i)] = static_cast<float>(fresh_v);
  }
  // All finite: quantize8 finds nothing to refuse.
  if (quantize8(map_m, m.data(), n, m_codes, &m_absmax) >= 0) return;
  if (quantize8(map_v, v.data(), n, v_codes, &v_absmax) >= 0) return;
  for (int64_t i = 0; i < n; ++i) {
    const bool negative = std::signbit(m[static_cast<size_t>(i)]);
    if (m_absmax > 0 && negative && m_codes[i] == 127) m_codes[i] = 126;
  }
}

}  // namespace qlora::ref
