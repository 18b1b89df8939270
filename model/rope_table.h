#pragma once
#include <vector>

#include "kernels/rope/rope.h"
#include "model/desc.h"

namespace qlora {

// The cosines and sines of a model's rotary embedding, as transformers (modeling_rope_utils.py) forms them:
// frequencies in fp32, angle = position * frequency rounded to fp32, so that long positions turn by the
// peers' angles.
class RopeTables {
 public:
  RopeTables() = default;
  RopeTables(const RopeDesc& desc, int rotary_dims, int64_t positions);
  RopeTable view() const { return {cos_.data(), sin_.data(), positions_, rotary_dims_}; }
  size_t bytes() const { return (cos_.size() + sin_.size()) * sizeof(float); }

 private:
  std::vector<float> cos_, sin_;
  int64_t positions_ = 0;
  int rotary_dims_ = 0;
};

// The frequencies of rotary pairs 0 .. rotary_dims/2.
std::vector<float> rope_frequencies(const RopeDesc& desc, int rotary_dims);

}  // namespace qlora
