#pragma once
#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "model/desc.h"

namespace qlora {

// Which linear gets a LoRA branch (Hu et al. 2021, arXiv:2106.09685): y += scale * (x A^T) B^T.
struct LoraChoice {
  int block;
  LinearKind kind;
  int rank;
  float scale;  // alpha / rank, or alpha / sqrt(rank) (rsLoRA)
};

struct LoraModule {
  int block;
  LinearKind kind;
  int rank;
  float scale;
  int64_t in, out;
  int64_t a, b;    // element offsets of A [rank, in] and B [out, rank] in the flat parameters
  uint32_t index;  // block * kLinears + kind: the module's name in dropout and initialization, whatever else
                   // is adapted
};

// Linears that read the same input, in the order of the forward pass: their A's lie together, as one matrix.
enum class Group : uint8_t { qkv, o, gate_up, down };
inline constexpr int kGroups = 4;
std::span<const LinearKind> members(Group g);

// Where every A and B lies in one flat fp32 buffer: parameters, gradients and moments all have this layout,
// so that the norm and the optimizer are one pass. Order: block, group, the group's A's, the group's B's.
class AdapterLayout {
 public:
  AdapterLayout() = default;
  // At most one choice a linear, any order.
  AdapterLayout(const ModelDesc& desc, std::span<const LoraChoice> choices);
  int64_t size() const { return size_; }
  std::span<const LoraModule> modules() const { return modules_; }
  const LoraModule* find(int block, LinearKind k) const {
    const int i = blocks_.empty() ? -1 : blocks_[static_cast<size_t>(block)][static_cast<size_t>(k)];
    return i < 0 ? nullptr : &modules_[static_cast<size_t>(i)];
  }
  // A uniform in +-1/sqrt(in) (kaiming_uniform with a = sqrt(5), PEFT's default), B zero. A value hangs on
  // seed, module and place alone.
  void initialize(uint64_t seed, std::span<float> params) const;

 private:
  std::vector<LoraModule> modules_;
  std::vector<std::array<int, kLinears>> blocks_;
  int64_t size_ = 0;
};

}  // namespace qlora
