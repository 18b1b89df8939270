#pragma once
#include <cstdint>
#include <span>

#include "kernels/adamw/adamw.h"
#include "quant/blockwise8.h"

namespace qlora {

// bitsandbytes' AdamW8bit: a tensor of kMin8Bit elements or more keeps its moments in 8 bits, in blocks of
// kBlock8 that begin with the tensor; a smaller one keeps them in fp32.
inline constexpr int64_t kMin8Bit = 4096;

// A run: consecutive elements of one tensor, whole blocks but for the one that ends the tensor. What one
// thread takes.
inline constexpr int64_t kMaxMomentRun = 64 * kBlock8;
struct MomentRun {
  bool eight_bit;
  int64_t param, count;  // its first element in params and grads, and how many
  int64_t state;         // its first code in m and v, or its first moment in m32 and v32
  int64_t block;         // its first scale in absmax_m and absmax_v; 8-bit runs only
};

// The moments of some runs: m = signed map[code] * absmax of the block, v = unsigned map[code] * absmax
// (quant/codebook.h). All zero at first, which decodes to 0.
struct Moments8 {
  std::span<const MomentRun> runs;
  std::span<uint8_t> m, v;              // a code an element of the 8-bit runs
  std::span<float> absmax_m, absmax_v;  // one a block of theirs
  std::span<float> m32, v32;            // a moment an element of the others
};

// One step over all runs, each block decoded, updated and coded again while in cache: adamw()'s formula on
// the decoded moments, the update taken from the fresh fp32 moments, which are coded afterwards. Nearest
// entry (nearest_entry's ties); a code of m whose sign bit is not m's moves to the entry below 0; an all-zero
// block stores absmax 0 and code 0. An element whose gradient is NaN or Inf, or has a square that overflows,
// keeps its parameter, decay included, and gets moments of 0. Source: bitsandbytes 0.50,
// optimizerStatic8bit2StateBlockwise, in IEEE fp32 with nothing fused and the decay before the update.
// Every ISA gives the same bits in 8-bit runs; the others are adamw()'s. Runs must not overlap; what they
// leave out of params and grads is not touched.
void adamw8bit(Exec& e, const AdamWHyper& hyper, std::span<float> params, std::span<const float> grads,
               const Moments8& moments);

}  // namespace qlora
