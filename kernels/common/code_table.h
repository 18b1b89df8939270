#pragma once
#include <array>
#include <cstdint>

namespace qlora {

// The nearest of a dynamic map's 256 entries (quant/codebook.h) by two look-ups, where nearest_entry takes
// eight comparisons one after another: x's bin is its sign, exponent and seven bits of mantissa, and no bin
// holds more than one border between entries. The codes are nearest_entry's own, ties included, with one
// exception: a value whose sign bit is set never gets the entry 0 of a signed map but the one below it, so
// that a first moment keeps its sign (bitsandbytes' optimizer).
struct CodeTable {
  // Bin 0 is everything below 2^-23, the last is everything from 1 on; then the same for the other sign.
  static constexpr int32_t kBelow = (104 << 7) - 1, kLast = 127 << 7;
  static constexpr int32_t kBins = kLast - kBelow + 1;
  // A bin's lowest code, plus 256 for the other sign. Padded, since vectors read 32 bits at each.
  uint16_t slot[2 * kBins + 1];
  // At a slot: the smallest x that has the next code.
  float next[512];
};

// `map`: 256 ascending values. Internal error when a bin holds two borders.
CodeTable make_code_table(const std::array<float, 256>& map);

}  // namespace qlora
