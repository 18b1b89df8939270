#pragma once
#include <algorithm>
#include <cstdint>
#include <span>

#include "kernels/attention/attention.h"
#include "kernels/cuda/device.h"

// Which document a block of an attention kernel works on.
namespace qlora::cuda {

// A block's document and the first row of its tile, counted from the document's begin.
struct AttentionPlace {
  int q_begin, q_count, k_begin, k_count, first;
  QLORA_DEVICE int offset() const { return k_count - q_count; }  // query i stands at key i + offset
};

// The bounds of some of a batch's documents. They are an argument of the launch: nothing is copied to the
// device, and nobody waits.
struct AttentionDocuments {
  static constexpr int kMost = 128;
  int count;
  int32_t blocks[kMost + 1];  // a document's first block of the grid
  int32_t q[kMost + 1], k[kMost + 1];

  // The blocks of a document begin with those that have most to do: the last queries, the first keys.
  QLORA_DEVICE AttentionPlace place(int block, bool of_keys, int rows) const {
    int d = 0;
    for (int above = count; above - d > 1;) {
      const int middle = (d + above) / 2;
      if (blocks[middle] <= block)
        d = middle;
      else
        above = middle;
    }
    const int turn = of_keys ? block - blocks[d] : blocks[d + 1] - 1 - block;
    return {q[d], q[d + 1] - q[d], k[d], k[d + 1] - k[d], turn * rows};
  }
};

// f(documents, blocks) for every kMost documents; a block has `rows` queries, or keys.
template <class F>
void for_each_launch(const Segments& docs, bool of_keys, int rows, F&& f) {
  const std::span<const int32_t> bounds = of_keys ? docs.k : docs.q;
  for (size_t first = 0; first + 1 < bounds.size(); first += AttentionDocuments::kMost) {
    AttentionDocuments d{};
    d.count = static_cast<int>(std::min<size_t>(AttentionDocuments::kMost, bounds.size() - 1 - first));
    for (int i = 0; i <= d.count; ++i) {
      const size_t at = first + static_cast<size_t>(i);
      d.q[i] = docs.q[at];
      d.k[i] = docs.k[at];
      if (i > 0) d.blocks[i] = d.blocks[i - 1] + (bounds[at] - bounds[at - 1] + rows - 1) / rows;
    }
    f(d, d.blocks[d.count]);
  }
}

}  // namespace qlora::cuda
