#include "quant/blockwise8.h"

#include <algorithm>

namespace qlora {

// On the bits, where |v| orders as integers and NaN and Inf are the largest.
float block_absmax(const float* values, int64_t n) {
  int32_t largest = 0;
  for (int64_t i = 0; i < n; ++i) largest = std::max(largest, std::bit_cast<int32_t>(values[i]) & 0x7fffffff);
  return largest < 0x00800000 ? 0.0f : std::bit_cast<float>(largest);
}

int64_t first_non_finite(const float* values, int64_t n) {
  return std::find_if_not(values, values + n, is_finite) - values;
}

int64_t quantize8(const float* map, const float* values, int64_t n, uint8_t* codes, float* absmax) {
  for (int64_t first = 0; first < n; first += kBlock8) {
    const int64_t end = std::min<int64_t>(n, first + kBlock8);
    const float a = block_absmax(values + first, end - first);
    if (!is_finite(a)) return first + first_non_finite(values + first, end - first);
    absmax[first / kBlock8] = a;
    if (a == 0) {
      std::fill(codes + first, codes + end, uint8_t{0});
      continue;
    }
    const float inverse = 1.0f / a;
    for (int64_t i = first; i < end; ++i) codes[i] = nearest_entry(map, values[i] * inverse);
  }
  return -1;
}

void dequantize8(const float* map, const uint8_t* codes, const float* absmax, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = map[codes[i]] * absmax[i / kBlock8];
}

}  // namespace qlora
