#pragma once
#include "model/weights.h"

namespace qlora {

// f(pointer, bytes) for everything that a view points to; the pointer may be moved.
template <class F>
void for_each_part(WeightView& w, F&& f) {
  const auto part = [&](auto*& p, int64_t bytes) {
    if (p != nullptr) f(p, static_cast<size_t>(bytes));
  };
  const int64_t blocks = (w.elements() + w.block_size - 1) / w.block_size;
  const bool nested = w.absmax_codes != nullptr;
  part(w.data, static_cast<int64_t>(w.code_bytes()));
  part(w.absmax, 4 * (w.format == Format::int8 ? w.rows : blocks));
  part(w.absmax_codes, blocks);
  part(w.nested_absmax, 4 * ((blocks + 255) / 256));
  if (nested) part(w.code_map, 4 * 256);
}

// A touch of a mapped file brings in what the page cache has of the 64 KiB around it (Linux's
// fault_around_bytes): bytes that become resident so besides the weights which are used in place (those are
// in Model::parts()).
size_t bytes_mapped_around(const Model& model);

}  // namespace qlora
