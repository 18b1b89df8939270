#pragma once
#include <array>
#include <cstdint>

#include "quant/weight_view.h"

// The numbers behind bitsandbytes' block formats; source: bitsandbytes 0.50, its CUDA kernels being
// canonical.

namespace qlora {

// NF4: quantiles of the normal distribution, ascending (QLoRA paper, appendix E).
inline constexpr std::array<float, 16> kNf4 = {
    -1.0f,
    -0.6961928009986877f,
    -0.5250730514526367f,
    -0.39491748809814453f,
    -0.28444138169288635f,
    -0.18477343022823334f,
    -0.09105003625154495f,
    0.0f,
    0.07958029955625534f,
    0.16093020141124725f,
    0.24611230194568634f,
    0.33791524171829224f,
    0.44070982933044434f,
    0.5626170039176941f,
    0.7229568362236023f,
    1.0f,
};
// The code of x is the number of thresholds strictly below it. They are midpoints of neighbours, written as
// double and rounded to fp32, as numpy does: four of them lie so near a tie that a literal with an `f` rounds
// the other way.
inline constexpr std::array<float, 15> kNf4Thresholds = {
    static_cast<float>(-0.8480964004993439),   static_cast<float>(-0.6106329262256622),
    static_cast<float>(-0.4599952697753906),   static_cast<float>(-0.33967943489551544),
    static_cast<float>(-0.23460740596055984),  static_cast<float>(-0.13791173323988914),
    static_cast<float>(-0.045525018125772476), static_cast<float>(0.03979014977812767),
    static_cast<float>(0.1202552504837513),    static_cast<float>(0.2035212516784668),
    static_cast<float>(0.2920137718319893),    static_cast<float>(0.3893125355243683),
    static_cast<float>(0.5016634166240692),    static_cast<float>(0.6427869200706482),
    static_cast<float>(0.8614784181118011),
};

// FP4 (sign, 2-bit exponent, 1-bit mantissa, over 12): not ascending. Bit 3 is the sign; code 8 is +0.0 on
// disk.
inline constexpr std::array<float, 16> kFp4 = {
    0.0f, 0.005208333333f,  0.66666667f,  1.0f,  0.33333333f,  0.5f,  0.16666667f,  0.25f,
    0.0f, -0.005208333333f, -0.66666667f, -1.0f, -0.33333333f, -0.5f, -0.16666667f, -0.25f,
};
// On |x|: the magnitude's rank is the number of thresholds strictly below it. They are CUDA's constants, up
// to 14 ulp off the midpoints.
inline constexpr std::array<float, 7> kFp4Thresholds = {
    0.00260417f, 0.0859375f, 0.20833333f, 0.29166667f, 0.4166667f, 0.583333f, 0.8333333f,
};

// The 16 values of nf4 or fp4.
inline const float* codebook(Format format) {
  check(format == Format::nf4 || format == Format::fp4, "a codebook of a format that has none");
  return format == Format::nf4 ? kNf4.data() : kFp4.data();
}

// bitsandbytes' 8-bit dynamic map: 256 values, ascending, in static storage. Signed (double quantization,
// Adam's first moment): entry 0 is -0.993, 127 is 0, 255 is 1. Unsigned (second moment): entry 0 is 0, 255 is
// 1.
const std::array<float, 256>& dynamic_map(bool with_sign);

}  // namespace qlora
