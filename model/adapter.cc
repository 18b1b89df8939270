#include "model/adapter.h"

#include <algorithm>
#include <cmath>

#include "memory/error.h"
#include "memory/random.h"

namespace qlora {
std::span<const LinearKind> members(Group g) {
  static constexpr LinearKind all[] = {LinearKind::q,    LinearKind::k,  LinearKind::v,   LinearKind::o,
                                       LinearKind::gate, LinearKind::up, LinearKind::down};
  switch (g) {
    case Group::qkv:
      return {all, 3};
    case Group::o:
      return {all + 3, 1};
    case Group::gate_up:
      return {all + 4, 2};
    case Group::down:
      return {all + 6, 1};
  }
  return {};
}

AdapterLayout::AdapterLayout(const ModelDesc& desc, std::span<const LoraChoice> choices) {
  const int blocks = static_cast<int>(desc.blocks.size());
  std::array<int, kLinears> none;
  none.fill(-1);
  blocks_.assign(desc.blocks.size(), none);
  for (int block = 0; block < blocks; ++block)
    for (int g = 0; g < kGroups; ++g) {
      const size_t first = modules_.size();
      for (LinearKind k : members(static_cast<Group>(g)))
        for (const LoraChoice& c : choices) {
          if (c.block != block || c.kind != k) continue;
          int& slot = blocks_[static_cast<size_t>(block)][static_cast<size_t>(k)];
          check(slot < 0 && c.rank > 0, linear_name(block, k), ": adapted twice or with rank ", c.rank);
          slot = static_cast<int>(modules_.size());
          modules_.push_back({block, k, c.rank, c.scale, desc.in_features(block, k),
                              desc.out_features(block, k), size_, 0,
                              static_cast<uint32_t>(block * kLinears + static_cast<int>(k))});
          size_ += c.rank * modules_.back().in;
        }
      for (size_t i = first; i < modules_.size(); ++i) {
        modules_[i].b = size_;
        size_ += modules_[i].out * modules_[i].rank;
      }
    }
}

void AdapterLayout::initialize(uint64_t seed, std::span<float> params) const {
  check(static_cast<int64_t>(params.size()) == size_, "adapter of ", params.size(), " elements, layout of ",
        size_);
  std::fill(params.begin(), params.end(), 0.0f);
  for (const LoraModule& m : modules_) {
    const uint64_t key = random_bits(seed, m.index);
    const double bound = 1.0 / std::sqrt(static_cast<double>(m.in));
    for (int64_t i = 0; i < m.rank * m.in; ++i) {
      const double unit = unit_interval(random_bits(key, static_cast<uint64_t>(i)));
      params[static_cast<size_t>(m.a + i)] = static_cast<float>((2 * unit - 1) * bound);
    }
  }
}

}  // namespace qlora
