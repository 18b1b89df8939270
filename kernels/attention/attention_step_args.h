#pragma once
#include "kernels/attention/attention.h"

// What attention_step's dispatch hands to CUDA's body.
namespace qlora::attention {

// Keys that a block takes. What it leaves of them is put together in their order.
inline constexpr int64_t kStepKeys = 128;

struct StepArgs {
  AttentionShape shape;
  ConstMat q, k, v;
  Mat o;
  float* parts;  // workspace: step_floats

  // The first key that is seen.
  int64_t first() const { return shape.window > 0 && shape.window < k.rows ? k.rows - shape.window : 0; }
  int64_t part_count() const { return (k.rows - first() + kStepKeys - 1) / kStepKeys; }
  // For each part and query head: sums of weighted values [head_dim], the largest score, the sum of weights.
  size_t step_floats() const {
    return static_cast<size_t>(part_count() * shape.q_heads * (shape.head_dim + 2));
  }
};

// One query; head_dim a multiple of 8, up to 256.
void step_cuda(Exec& e, const StepArgs& a);

}  // namespace qlora::attention
