#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "model/decoder.h"
#include "train/data/batches.h"

namespace qlora {

inline BatchLimits limits_of(const BatchMaxima& m) { return {m.tokens, m.documents, m.longest, m.loss_rows}; }

inline BatchMaxima larger_of(const BatchMaxima& a, const BatchMaxima& b) {
  return {std::max(a.tokens, b.tokens), std::max(a.documents, b.documents), std::max(a.longest, b.longest),
          std::max(a.loss_rows, b.loss_rows)};
}

// The decoder's view of a batch; `targets` holds what it points to.
inline TokenBatch token_batch(const Batch& b, std::vector<int32_t>& targets) {
  targets.clear();
  for (int32_t row : b.loss_rows) targets.push_back(b.targets[static_cast<size_t>(row)]);
  return {b.ids, b.positions, b.cu_seqlens, b.places, b.loss_rows, targets};
}

// A batch that takes every maximum at once: what a rehearsal rehearses, since no real one needs more of
// anything.
struct LargestBatch {
  explicit LargestBatch(const BatchMaxima& m)
      : ids(static_cast<size_t>(m.tokens)),
        places(ids.size()),
        rows(static_cast<size_t>(m.loss_rows)),
        offsets(static_cast<size_t>(m.documents) + 1) {
    // One document of the longest length; the others share what is left.
    for (size_t i = 1; i < offsets.size(); ++i) {
      const int64_t rest =
          (m.tokens - m.longest) * static_cast<int64_t>(i - 1) / std::max<int64_t>(1, m.documents - 1);
      offsets[i] = static_cast<int32_t>(m.longest + rest);
    }
  }
  TokenBatch view() const { return {ids, ids, offsets, places, rows, rows}; }
  std::vector<int32_t> ids;
  std::vector<uint64_t> places;
  std::vector<int32_t> rows, offsets;
};

}  // namespace qlora
