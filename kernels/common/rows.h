#pragma once
#include <algorithm>
#include <cstdint>

#include "memory/exec.h"
#include "memory/view.h"

namespace qlora {

// What activations may be stored as.
inline bool is_activation(DType t) { return t == DType::f32 || t == DType::bf16; }

inline bool same_shape(const ConstMat& a, const ConstMat& b) { return a.rows == b.rows && a.cols == b.cols; }

// f(begin, end) over fixed ranges that cover [0, count): which ranges depends on `count` and `each` alone.
template <class F>
void parallel_ranges(const Exec& e, int64_t count, int64_t each, F&& f) {
  e.parallel((count + each - 1) / each,
             [&](int64_t task, int) { f(task * each, std::min(count, (task + 1) * each)); });
}

// Rows of a task that moves about 32k elements: enough work to outweigh its start.
inline int64_t rows_per_task(int64_t cols) {
  return std::max<int64_t>(1, 32768 / std::max<int64_t>(1, cols));
}

}  // namespace qlora
