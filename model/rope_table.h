#pragma once
#include <memory>
#include <vector>

#include "kernels/rope/rope.h"
#include "memory/cuda/host.h"
#include "model/desc.h"

namespace qlora {

// The cosines and sines of a model's rotary embedding, as transformers (modeling_rope_utils.py) forms them:
// frequencies in fp32, angle = position * frequency rounded to fp32, so that long positions turn by the
// peers' angles.
class RopeTables {
 public:
  RopeTables() = default;
  // Reserves only: a plan asks for sizes. fill() computes.
  RopeTables(const RopeDesc& desc, int rotary_dims, int64_t positions);
  void fill();
  // Fills it and moves it to a CUDA device: view() is the device's from here on. Category::memory when that
  // has no room.
  void move_to(cuda::Stream& stream);
  RopeTable view() const {
    const auto* const d = reinterpret_cast<const float*>(device_.data());
    if (d != nullptr) return {d, d + half_bytes() / sizeof(float), positions_, rotary_dims_};
    return {cos_.get(), sin_.get(), positions_, rotary_dims_};
  }
  size_t bytes() const { return 2 * half_bytes(); }

 private:
  size_t half_bytes() const {
    return static_cast<size_t>(positions_) * static_cast<size_t>(rotary_dims_ / 2) * sizeof(float);
  }
  RopeDesc desc_;
  std::unique_ptr<float[]> cos_, sin_;
  cuda::Memory device_;  // cosines, then sines
  int64_t positions_ = 0;
  int rotary_dims_ = 0;
  bool filled_ = false;
};

// The frequencies of rotary pairs 0 .. rotary_dims/2.
std::vector<float> rope_frequencies(const RopeDesc& desc, int rotary_dims);

}  // namespace qlora
