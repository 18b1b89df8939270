#pragma once
#include <cstdint>
#include <span>

#include "memory/exec.h"
#include "memory/view.h"

namespace qlora {

// Rotary position embedding (Su et al. 2021, arXiv:2104.09864) in the half-split layout of Llama in
// transformers: element i of the first half of a head's `rotary_dims` turns with element i of the second
// half; the rest of the head passes.
//
// cos, sin: fp32 [positions, rotary_dims / 2], any attention scaling (yarn) already in them.
struct RopeTable {
  const float* cos = nullptr;
  const float* sin = nullptr;
  int64_t positions = 0;
  int rotary_dims = 0;
};

// x [T, heads * head_dim] in place, fp32 or bf16 (computed in fp32, rounded once); row t turns by
// positions[t] < table.positions. inverse: by the opposite angle, which is the backward pass.
void rope(Exec& e, const RopeTable& table, std::span<const int32_t> positions, int heads, int head_dim,
          bool inverse, const Mat& x);

}  // namespace qlora
