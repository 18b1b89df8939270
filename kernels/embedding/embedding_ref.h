#pragma once
#include <cstdint>

namespace qlora::ref {

// The definition: y [ids, cols] of a decoded table [.., cols].
template <class T>
void embedding(int64_t count, const int32_t* ids, int64_t cols, const T* table, T scale, T* y) {
  for (int64_t t = 0; t < count; ++t)
    for (int64_t j = 0; j < cols; ++j) y[t * cols + j] = table[ids[t] * cols + j] * scale;
}

}  // namespace qlora::ref
