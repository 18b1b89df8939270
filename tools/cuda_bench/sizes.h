#pragma once
#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "model/desc.h"

namespace qlora::bench {

// Training: the model as its config.json has it, and the run. Rows are one document each.
struct StepSize {
  std::string name, config;
  int64_t rows, sequence, accumulation;
  int rank;
  int timed;                                          // steps, at most
  int64_t tokens() const { return rows * sequence; }  // of a microbatch
};

// Category::input where the config is none that is known.
ModelDesc desc_of(const StepSize& s);

// What the mathematics of a token takes, forward and backward, nothing computed again: weights of linears and
// head four times (forward, and backward to the input), LoRA's six, attention's products (two forward, five
// backward) over the pairs that are seen.
double flops_per_token(const StepSize& s);

// Everything that a measurement is as large as. tiny(): for tests on the emulator, where a figure means
// nothing.
struct Sizes {
  std::vector<int64_t> peak;  // of square products
  int proposals;              // of the library, tried for each
  double burst;               // seconds of one, at least; and of what stands for a sustained rate
  double sustained;
  int rounds;
  size_t copy_bytes, cycled_bytes;              // moved by a copy; that operands taken in turns have together
  std::vector<std::array<int64_t, 2>> weights;  // [out, in]
  std::vector<int64_t> rows;                    // of products
  std::vector<int64_t> few;                     // of the fused kernel
  std::vector<int> head_sizes;
  std::vector<int64_t> sequences;
  int heads, kv_heads;
  StepSize small, large;
};
Sizes full_sizes();
Sizes tiny_sizes();

}  // namespace qlora::bench
