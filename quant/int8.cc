#include "quant/int8.h"

#include <algorithm>
#include <cmath>

#include "memory/dtype.h"

namespace qlora {

int64_t quantize_int8_row(const float* values, int64_t n, int8_t* codes, float* absmax) {
  float largest = 0;
  for (int64_t i = 0; i < n; ++i) {
    const float v = round_to(DType::f16, values[i]);
    if (!std::isfinite(v)) return i;
    largest = std::max(largest, std::fabs(v));
  }
  *absmax = largest;
  const float factor = 127.0f * (1.0f / (largest == 0 ? 1.0f : largest));
  // Adding and taking away 1.5 * 2^23 rounds |x| < 2^22 to an integer, ties to even, without a library call.
  constexpr float magic = 12582912.0f;
  for (int64_t i = 0; i < n; ++i) {
    const float x = round_to(DType::f16, values[i]) * factor;
    codes[i] = static_cast<int8_t>(static_cast<int32_t>((x + magic) - magic));
  }
  return -1;
}

}  // namespace qlora
