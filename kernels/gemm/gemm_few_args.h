#pragma once
#include "kernels/gemm/gemm_blocks.h"

namespace qlora {

// Rows of x that a weight meets at most when it is decoded.
inline constexpr int64_t kFewRows = 4;

// x of every term in fp32, behind one another in a row; each begins on a line of the cache, zeros to its end.
// Beside x's own rows there are rows of zeros, as many as the last ones are computed with.
struct FewRows {
  float* data = nullptr;
  int64_t stride = 0;
  static int64_t rows_of(int64_t rows) { return rows <= 1 ? rows : ceil_div(rows, kFewRows) * kFewRows; }
  static int64_t padded(int64_t cols) { return ceil_div(cols, 16) * 16; }
  static int64_t stride_of(std::span<const GemmTerm> terms) {
    int64_t cols = 0;
    for (const GemmTerm& t : terms) cols += padded(t.x.cols);
    return cols;
  }
};

}  // namespace qlora
