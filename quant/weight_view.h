#pragma once
#include <cstdint>

#include "memory/dtype.h"
#include "memory/error.h"

namespace qlora {

// How the elements of a weight are stored.
enum class Format : uint8_t { f32, f16, bf16, nf4, fp4, int8, q4_0, q4_1, q8_0 };

// GGUF blocks stand for bf16 weights: what is decoded (in fp32) is rounded to bf16, in every compute type.
inline bool is_gguf(Format f) { return f == Format::q4_0 || f == Format::q4_1 || f == Format::q8_0; }

// A weight matrix [rows, cols] = [out_features, in_features], row-major, that somebody else owns (often a
// mapped file). Blocks of nf4 and fp4 run along the flattened matrix and may straddle rows; those of GGUF
// never do.
//
//   f32 f16 bf16   data: elements
//   nf4 fp4        data: packed codes, first element in the high nibble [(n+1)/2 bytes]; scale of block b of
//                  `block_size` elements: absmax[b], or with double quantization
//                  code_map[absmax_codes[b]] * nested_absmax[b / 256] + nested_offset (two roundings)
//   int8           data: int8 [rows, cols]; absmax: fp32 [rows] (SCB); w = (q * SCB) * fp32(1/127)
//   q4_0 q4_1 q8_0 data: GGUF blocks of 32, rows contiguous
struct WeightView {
  Format format = Format::f32;
  int64_t rows = 0, cols = 0;
  const void* data = nullptr;
  int block_size = 64;
  const float* absmax = nullptr;
  const uint8_t* absmax_codes = nullptr;  // set: double-quantized
  const float* nested_absmax = nullptr;
  const float* code_map = nullptr;  // fp32 [256], the signed dynamic map
  float nested_offset = 0;
  float scale =
      1;  // multiplies every decoded element (LoRA's alpha / r); decoded * scale is rounded once, if at all

  explicit operator bool() const { return data != nullptr; }
  int64_t elements() const { return rows * cols; }
  // fp32 scale of block b (nf4 and fp4).
  float block_scale(int64_t b) const {
    if (absmax_codes == nullptr) return absmax[b];
    const float product = code_map[absmax_codes[b]] * nested_absmax[b / 256];
    return product + nested_offset;
  }
  // Bytes that one pass over the matrix reads, scales included.
  double stored_bytes() const;
  // Of those, the elements'.
  double code_bytes() const;
};

// w[row, col .. col+count) decoded to fp32, `scale` applied. The definition of every format; `out` does not
// alias.
void decode_row(const WeightView& w, int64_t row, int64_t col, int64_t count, float* out);

}  // namespace qlora
