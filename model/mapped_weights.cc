#include "model/mapped_weights.h"

#include <algorithm>

namespace qlora {

size_t bytes_mapped_around(const Model& model) {
  constexpr size_t kAround = size_t{64} << 10;
  const std::vector<const MappedFile*> files = model.checkpoint().files();
  std::vector<std::pair<uintptr_t, uintptr_t>> windows;
  size_t used = 0;
  const auto add = [&](WeightView w) {
    for_each_part(w, [&](const auto* p, size_t bytes) {
      for (const MappedFile* f : files) {
        if (!f->contains(p)) continue;
        const auto first = reinterpret_cast<uintptr_t>(f->data()), begin = reinterpret_cast<uintptr_t>(p),
                   end = std::min(first + f->size(), (begin + bytes + kAround - 1) / kAround * kAround);
        windows.emplace_back(std::max(first, begin / kAround * kAround), end);
        used += bytes;
      }
    });
  };
  add(model.embed());
  if (!model.desc().tied) add(model.head());
  for (int b = 0; b < model.block_count(); ++b)
    for (const WeightView& w : model.block(b).linear) add(w);
  std::sort(windows.begin(), windows.end());
  size_t covered = 0;
  uintptr_t done = 0;
  for (const auto& [begin, end] : windows) {
    covered += end > done ? end - std::max(begin, done) : 0;
    done = std::max(done, end);
  }
  return covered - std::min(covered, used);
}

}  // namespace qlora
