#pragma once
#include <cstdint>

namespace qlora {

// One row of LLM.int8 (paper section 3; bitsandbytes' int8_vectorwise_quant without outliers): the values are
// cast to fp16 first, *absmax (SCB) = max |v|, q = rint(v * (127 * (1 / SCB))), ties to even; an all-zero row
// is 0 with SCB 0. Decoding: (q * SCB) * fp32(1/127). Aliasing: none.
// Returns -1, or the index of the first value that fp16 cannot hold (NaN, Inf, |v| >= 65520): the outputs are
// then undefined.
[[nodiscard]] int64_t quantize_int8_row(const float* values, int64_t n, int8_t* codes, float* absmax);

}  // namespace qlora
