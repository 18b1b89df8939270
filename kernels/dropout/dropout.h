#pragma once
#include <cstdint>
#include <span>

#include "memory/exec.h"
#include "memory/view.h"

namespace qlora {

// Whether an element is kept is a counter function of (seed, step, module, the token's place in the data,
// column): never stored, the same under any batching, packing, recompute, tiling or thread count.
struct DropoutKey {
  uint64_t seed = 0;
  uint64_t step = 0;
  uint32_t module = 0;  // index of the linear in the model
  float p = 0;          // probability of dropping, in [0, 1)
};

// y = kept ? x / (1-p) : 0. x, y [T, C] of one dtype, fp32 or bf16; y may be x. tokens[t]: the token's place
// in the data (row of the data set * 2^32 + index in the row).
void dropout_forward(Exec& e, const DropoutKey& key, std::span<const uint64_t> tokens, const ConstMat& x,
                     const Mat& y);

// dx += kept ? dy / (1-p) : 0. dy fp32 or bf16, dx fp32 or bf16 [T, C].
void dropout_backward(Exec& e, const DropoutKey& key, std::span<const uint64_t> tokens, const ConstMat& dy,
                      const Mat& dx);

}  // namespace qlora
