#pragma once
#include <vector>

#include "memory/cuda/host.h"
#include "model/weights.h"

namespace qlora {

// A model's frozen weights on a CUDA device, bytes as the model has them: blocks, final norm, head, and the
// embedding where it is the head too. An embedding of its own stays with the host, which looks its rows up.
// Each array begins on 16 bytes, as kernels ask (kernels/cuda/decode.h).
class DeviceWeights {
 public:
  // What they take beside the bytes that Model::parts() counts for them: the way to the next 16 bytes, and
  // the maps of double quantization.
  static size_t padding(const Model& model);
  // Of pinned memory, while weights are on their way.
  static size_t staging_bytes() { return kBuffers * kBufferBytes; }

  // Copies everything, and waits for it; what lies in a mapped file leaves memory again as it is read.
  // Category::memory when the device has no room, or the system grants no pinned memory.
  DeviceWeights(const Model& model, cuda::Stream& stream);

  size_t bytes() const { return memory_.bytes(); }
  const BlockWeights& block(int i) const { return blocks_[static_cast<size_t>(i)]; }
  const WeightView& head() const { return head_; }
  // Of the model's table, if it is the head too.
  const WeightView& embed() const { return head_; }
  const float* final_norm() const { return final_norm_; }

 private:
  static constexpr int kBuffers = 2;
  static constexpr size_t kBufferBytes = size_t{2} << 20;
  class Copy;

  cuda::Memory memory_;
  WeightView head_;
  const float* final_norm_ = nullptr;
  std::vector<BlockWeights> blocks_;
};

}  // namespace qlora
