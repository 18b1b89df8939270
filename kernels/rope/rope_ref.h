#pragma once
#include <cstdint>

namespace qlora::ref {

// The definition: x [rows, heads * head_dim] in place; cos, sin [positions, rotary_dims / 2].
template <class T>
void rope(int64_t rows, int heads, int head_dim, int rotary_dims, const int32_t* positions, const float* cos,
          const float* sin, bool inverse, T* x) {
  const int half = rotary_dims / 2;
  for (int64_t t = 0; t < rows; ++t)
    for (int h = 0; h < heads; ++h)
      for (int i = 0; i < half; ++i) {
        const T c = T(static_cast<double>(cos[int64_t{positions[t]} * half + i]));
        const T s = T(static_cast<double>(sin[int64_t{positions[t]} * half + i])) * T(inverse ? -1. : 1.);
        T& a = x[(t * heads + h) * head_dim + i];
        T& b = x[(t * heads + h) * head_dim + i + half];
        const T turned = a * c - b * s;
        b = b * c + a * s;
        a = turned;
      }
}

}  // namespace qlora::ref
