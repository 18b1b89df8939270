#include "quant/weight_view.h"

#include <algorithm>
#include <cstring>

#include "quant/codebook.h"

namespace qlora {
namespace {

constexpr int kGgufBlock = 32;

int gguf_block_bytes(Format format) {
  if (format == Format::q4_0) return 18;
  if (format == Format::q4_1) return 20;
  return 34;  // q8_0
}

// Files align tensors to less than their element size: no typed loads.
template <class T>
T load(const void* base, int64_t index) {
  T value;
  std::memcpy(&value, static_cast<const char*>(base) + index * static_cast<int64_t>(sizeof(T)), sizeof(T));
  return value;
}

template <class T>
void decode_plain(const void* data, int64_t first, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = static_cast<float>(load<T>(data, first + i));
}

void decode_4bit(const WeightView& w, int64_t first, int64_t count, float* out) {
  const float* values = codebook(w.format);
  const uint8_t* packed = static_cast<const uint8_t*>(w.data);
  const int64_t end = first + count;
  while (first < end) {
    const int64_t block = first / w.block_size;
    const int64_t stop = std::min(end, (block + 1) * w.block_size);
    const float scale = w.block_scale(block);
    float table[16];
    for (int q = 0; q < 16; ++q) table[q] = values[q] * scale;
    if (first & 1) *out++ = table[packed[first++ >> 1] & 15];
    for (; first + 1 < stop; first += 2) {
      const uint8_t byte = packed[first >> 1];
      *out++ = table[byte >> 4];
      *out++ = table[byte & 15];
    }
    if (first < stop) *out++ = table[packed[first++ >> 1] >> 4];
  }
}

void decode_int8(const WeightView& w, int64_t row, int64_t col, int64_t count, float* out) {
  const int8_t* q = static_cast<const int8_t*>(w.data) + row * w.cols + col;
  const float scale = w.absmax[row];
  constexpr float unit = 1.0f / 127.0f;
  for (int64_t i = 0; i < count; ++i) out[i] = (static_cast<float>(q[i]) * scale) * unit;
}

// One block of 32; byte j of a 4-bit block holds elements j (low nibble) and j + 16 (high).
void decode_gguf_block(Format format, const uint8_t* block, float* out) {
  const float d = static_cast<float>(load<f16>(block, 0));
  if (format == Format::q8_0) {
    for (int j = 0; j < kGgufBlock; ++j) out[j] = d * static_cast<float>(load<int8_t>(block, 2 + j));
    return;
  }
  const bool offset = format == Format::q4_1;
  const float m = offset ? static_cast<float>(load<f16>(block, 1)) : 0.0f;
  const uint8_t* q = block + (offset ? 4 : 2);
  for (int j = 0; j < kGgufBlock; ++j) {
    const int code = j < 16 ? q[j] & 15 : q[j - 16] >> 4;
    out[j] = offset ? d * static_cast<float>(code) + m : d * static_cast<float>(code - 8);
  }
}

void decode_gguf(const WeightView& w, int64_t row, int64_t col, int64_t count, float* out) {
  const int bytes = gguf_block_bytes(w.format);
  const uint8_t* blocks = static_cast<const uint8_t*>(w.data) + row * (w.cols / kGgufBlock) * bytes;
  const int64_t end = col + count;
  while (col < end) {
    const int64_t block = col / kGgufBlock, stop = std::min(end, (block + 1) * kGgufBlock);
    float values[kGgufBlock];
    decode_gguf_block(w.format, blocks + block * bytes, values);
    out = std::copy(values + col % kGgufBlock, values + (stop - block * kGgufBlock), out);
    col = stop;
  }
}

void decode_unscaled(const WeightView& w, int64_t row, int64_t col, int64_t count, float* out) {
  const int64_t first = row * w.cols + col;
  switch (w.format) {
    case Format::f32:
      return decode_plain<float>(w.data, first, count, out);
    case Format::f16:
      return decode_plain<f16>(w.data, first, count, out);
    case Format::bf16:
      return decode_plain<bf16>(w.data, first, count, out);
    case Format::nf4:
    case Format::fp4:
      return decode_4bit(w, first, count, out);
    case Format::int8:
      return decode_int8(w, row, col, count, out);
    case Format::q4_0:
    case Format::q4_1:
    case Format::q8_0:
      return decode_gguf(w, row, col, count, out);
  }
}

}  // namespace

double WeightView::code_bytes() const {
  const double n = static_cast<double>(rows) * static_cast<double>(cols);
  switch (format) {
    case Format::f32:
      return 4 * n;
    case Format::f16:
    case Format::bf16:
      return 2 * n;
    case Format::nf4:
    case Format::fp4:
      return static_cast<double>((elements() + 1) / 2);
    case Format::int8:
      return n;
    case Format::q4_0:
    case Format::q4_1:
    case Format::q8_0:
      return n / kGgufBlock * gguf_block_bytes(format);
  }
  return 0;
}

double WeightView::stored_bytes() const {
  if (format == Format::int8) return code_bytes() + 4.0 * static_cast<double>(rows);
  if (format != Format::nf4 && format != Format::fp4) return code_bytes();
  const int64_t blocks = (elements() + block_size - 1) / block_size;
  if (absmax_codes == nullptr) return code_bytes() + 4.0 * static_cast<double>(blocks);
  return code_bytes() + static_cast<double>(blocks) + 4.0 * static_cast<double>((blocks + 255) / 256);
}

void decode_row(const WeightView& w, int64_t row, int64_t col, int64_t count, float* out) {
  check(row >= 0 && row < w.rows && col >= 0 && count >= 0 && count <= w.cols - col, "decode_row [", row,
        ", ", col, "+", count, ") of [", w.rows, ", ", w.cols, "]");
  decode_unscaled(w, row, col, count, out);
  if (w.scale != 1.0f)
    for (int64_t i = 0; i < count; ++i) out[i] *= w.scale;
  if (is_gguf(w.format))
    for (int64_t i = 0; i < count; ++i) out[i] = round_to(DType::bf16, out[i]);
}

}  // namespace qlora
