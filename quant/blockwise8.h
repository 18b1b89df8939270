#pragma once
#include <bit>
#include <cstdint>

namespace qlora {

// bitsandbytes' dynamic 8-bit format: blocks of 256, each element the nearest entry of a map of 256 ascending
// values (dynamic_map in quant/codebook.h) times the block's fp32 absmax.
inline constexpr int kBlock8 = 256;

// The entry nearest to x, as the binary search of the CUDA kernel finds it: a tie goes where its path ends.
// map: whatever [0, 256) index, on a card too.
template <class Map>
constexpr uint8_t nearest_entry(const Map& map, float x) {
  int pivot = 127, lower = 0, upper = 255;
  for (int step = 64; step > 0; step >>= 1) {
    const bool up = x > map[pivot];
    lower = up ? pivot : lower;
    upper = up ? upper : pivot;
    pivot += up ? step : -step;
  }
  const float value = map[pivot];
  const int other = x > value ? upper : lower;
  const float middle = (map[other] + value) * 0.5f;
  return static_cast<uint8_t>((x > value ? x > middle : x < middle) ? other : pivot);
}

// codes uint8 [n], absmax fp32 [ceil(n / 256)]. An all-zero block, and one with absmax below 2^-126, stores
// absmax 0 and code 0. Returns -1, or the index of the first NaN or Inf: the outputs are then undefined.
[[nodiscard]] int64_t quantize8(const float* map, const float* values, int64_t n, uint8_t* codes,
                                float* absmax);

// out[i] = map[codes[i]] * absmax[i / 256], in fp32.
void dequantize8(const float* map, const uint8_t* codes, const float* absmax, int64_t n, float* out);

// max |v| of a block; 0 where it is below 2^-126; NaN or Inf where the block holds one.
float block_absmax(const float* values, int64_t n);
inline bool is_finite(float f) { return (std::bit_cast<uint32_t>(f) & 0x7f800000u) != 0x7f800000u; }
// n where all are finite.
int64_t first_non_finite(const float* values, int64_t n);

}  // namespace qlora
