#pragma once
#include "kernels/grad_norm/grad_norm.h"

// What l2_norm's dispatch hands to CUDA's body.
namespace qlora {

inline constexpr int64_t kNormChunk = 16384;

// The sum of squares; waits for it. sums: one a chunk, and one for the result.
double squares_cuda(Exec& e, std::span<const float> x, double* sums);

}  // namespace qlora
