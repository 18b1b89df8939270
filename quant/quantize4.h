#pragma once
#include <cstdint>

#include "quant/weight_view.h"

namespace qlora {

// nf4 or fp4 codes of values[0, n), in blocks of `block_size` (a multiple of 32) that begin at values[0].
//   packed  uint8 [(n + 1) / 2]: first element in the high nibble; for odd n the last low nibble codes 0.0
//   absmax  fp32 [ceil(n / block_size)]: max |v|; 0 for an all-zero block and for one below 2^-126 (CUDA
//           flushes subnormals), whose codes are then those of 0.0
// Rule: x = v * (1 / absmax) in IEEE fp32, ties at a threshold to the lower code (fp4: smaller magnitude).
// Returns -1, or the index of the first NaN or Inf: packed and absmax are then undefined.
[[nodiscard]] int64_t quantize4(Format format, const float* values, int64_t n, int block_size,
                                uint8_t* packed, float* absmax);

// Double quantization of the fp32 scales absmax[0, blocks), in blocks of 256 by the signed dynamic map.
// The offset is their mean: the very bits of torch's mean on an x86 CPU with one thread, which bitsandbytes
// stores; in fp64 where the fp32 sum overflows; 0 for no blocks.
float absmax_offset(const float* absmax, int64_t blocks);
//   codes   uint8 [blocks]: of (absmax - offset)
//   nested  fp32 [ceil(blocks / 256)]
// A scale is rebuilt as map[code] * nested + offset (WeightView::block_scale).
void quantize_absmax(const float* absmax, int64_t blocks, float offset, uint8_t* codes, float* nested);

}  // namespace qlora
