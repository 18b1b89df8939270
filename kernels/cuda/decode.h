#pragma once
#include <algorithm>

#include "kernels/cuda/device.h"
#include "memory/view.h"
#include "quant/codebook.h"
#include "quant/weight_view.h"

namespace qlora::cuda {

// A weight as kernels take it: decode_row's bits, element by element. data is aligned to 16 bytes (4 for what
// fp32 it points to), as the engine uploads it.
struct Weight {
  WeightView w;
  float codes[16];  // nf4 and fp4

  Weight() = default;
  explicit Weight(const WeightView& view) : w(view), codes() {
    if (w.format == Format::nf4 || w.format == Format::fp4) std::copy_n(codebook(w.format), 16, codes);
  }
};

QLORA_DEVICE float block_scale(const WeightView& w, int64_t block) {
  if (w.absmax_codes == nullptr) return w.absmax[block];
  const float product = w.code_map[w.absmax_codes[block]] * w.nested_absmax[block / 256];
  return product + w.nested_offset;
}

// A GGUF block of 32: byte j of a 4-bit one holds elements j (low nibble) and j + 16 (high).
template <int kBytes>
QLORA_DEVICE float decode_gguf(const WeightView& w, int64_t row, int64_t col) {
  const uint8_t* block = static_cast<const uint8_t*>(w.data) + (row * (w.cols / 32) + col / 32) * kBytes;
  const f16* halves = reinterpret_cast<const f16*>(block);
  const int j = static_cast<int>(col % 32);
  const float d = to_float(halves[0]);
  if constexpr (kBytes == 34) return d * static_cast<float>(static_cast<int8_t>(block[2 + j]));
  const uint8_t* q = block + (kBytes == 20 ? 4 : 2);
  const int code = j < 16 ? q[j] & 15 : q[j - 16] >> 4;
  if constexpr (kBytes == 20) return d * static_cast<float>(code) + to_float(halves[1]);
  return d * static_cast<float>(code - 8);
}

QLORA_DEVICE float decode_unscaled(const Weight& weight, int64_t row, int64_t col) {
  const WeightView& w = weight.w;
  const int64_t at = row * w.cols + col;
  switch (w.format) {
    case Format::f32:
      return static_cast<const float*>(w.data)[at];
    case Format::f16:
      return to_float(static_cast<const f16*>(w.data)[at]);
    case Format::bf16:
      return to_float(static_cast<const bf16*>(w.data)[at]);
    case Format::nf4:
    case Format::fp4: {
      const uint8_t byte = static_cast<const uint8_t*>(w.data)[at / 2];
      return weight.codes[at % 2 == 0 ? byte >> 4 : byte & 15] * block_scale(w, at / w.block_size);
    }
    case Format::int8:
      return static_cast<float>(static_cast<const int8_t*>(w.data)[at]) * w.absmax[row] * (1.0f / 127.0f);
    case Format::q4_0:
      return decode_gguf<18>(w, row, col);
    case Format::q4_1:
      return decode_gguf<20>(w, row, col);
    case Format::q8_0:
      return decode_gguf<34>(w, row, col);
  }
  return 0;
}

QLORA_DEVICE float decode(const Weight& weight, int64_t row, int64_t col) {
  float x = decode_unscaled(weight, row, col);
  if (weight.w.scale != 1.0f) x *= weight.w.scale;
  const Format f = weight.w.format;
  const bool gguf = f == Format::q4_0 || f == Format::q4_1 || f == Format::q8_0;
  return gguf ? to_float(from_float<bf16>(x)) : x;
}

// Of an activation.
QLORA_DEVICE float element(const ConstMat& x, int64_t i, int64_t j) {
  const int64_t at = i * x.stride + j;
  return x.dtype == DType::bf16 ? to_float(static_cast<const bf16*>(x.data)[at])
                                : static_cast<const float*>(x.data)[at];
}
QLORA_DEVICE void set_element(const Mat& y, int64_t i, int64_t j, float f) {
  const int64_t at = i * y.stride + j;
  if (y.dtype == DType::bf16)
    static_cast<bf16*>(y.data)[at] = from_float<bf16>(f);
  else
    static_cast<float*>(y.data)[at] = f;
}

}  // namespace qlora::cuda
