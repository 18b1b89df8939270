#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string_view>

#include "quant/weight_view.h"

namespace qlora {

// How a weight matrix is to be quantized: nf4 or fp4 in blocks along the flattened matrix, or int8 by rows.
struct QuantizedSpec {
  Format format = Format::nf4;
  int block_size = 64;       // 32, 64, 128 ... 4096; nf4 and fp4 only
  bool double_quant = true;  // nf4 and fp4 only
};

// Elements of each part of a quantized [rows, cols]; a part that the spec does not have counts 0.
struct QuantizedSizes {
  int64_t data = 0;           // bytes: packed codes (uint8), or int8 [rows, cols]
  int64_t absmax = 0;         // fp32: one a block without double quantization; int8: one a row
  int64_t absmax_codes = 0;   // uint8: one a block with double quantization
  int64_t nested_absmax = 0;  // fp32: one for 256 blocks with double quantization
  int64_t bytes() const { return data + 4 * absmax + absmax_codes + 4 * nested_absmax; }
};

// Category::usage for a spec that no format has, Category::input for a shape that overflows.
QuantizedSizes sizes_of(const QuantizedSpec& spec, int64_t rows, int64_t cols);

// The caller's memory, each part of the size that sizes_of tells; parts of size 0 may be null.
struct QuantizedParts {
  void* data = nullptr;
  float* absmax = nullptr;
  uint8_t* absmax_codes = nullptr;
  float* nested_absmax = nullptr;
};

// The view of such a matrix before anything is written: its offset of double quantization is still 0.
WeightView view_of(const QuantizedSpec& spec, int64_t rows, int64_t cols, const QuantizedParts& parts);

// Writes rows [row, row + count) of the matrix as fp32 [count, cols] to `out`. Called from several threads at
// once, each range in any order; a row may be asked for twice. May throw.
using RowReader = std::function<void(int64_t row, int64_t count, float* out)>;

// Quantizes [rows, cols] as it streams from `read`, on `threads` threads; the bytes do not depend on their
// number. Besides `parts` it takes about 256 KiB or two rows a thread, and with double quantization 4 bytes a
// block. Returns the view of `parts`.
// Throws what the reader threw, or Category::input naming `name`, row and column of a value that cannot be
// quantized (NaN, Inf; beyond fp16 for int8); where several chunks fail, the first one in the matrix speaks.
WeightView quantize_matrix(std::string_view name, const QuantizedSpec& spec, int64_t rows, int64_t cols,
                           const RowReader& read, const QuantizedParts& parts, int threads);

}  // namespace qlora
