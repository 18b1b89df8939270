#pragma once
#include "kernels/gemm/gemm_blocks.h"

namespace qlora {

// Rows of x that a weight meets at most when it is decoded.
inline constexpr int64_t kFewRows = 4;

// Outputs that one term after another adds to.
inline constexpr int64_t kFewOutputs = 64;

// x of every term, behind one another in a row: in fp32, zeros after it to the end of a line of the cache; or
// in integers where few_ints.inl multiplies these (which may be said where an x is bf16). Beside x's own rows
// there are rows of zeros, as many as the last ones are computed with.
struct FewRows {
  float* data = nullptr;
  int64_t stride = 0;
  static int64_t rows_of(int64_t rows) { return rows <= 1 ? rows : ceil_div(rows, kFewRows) * kFewRows; }
  static int64_t padded(int64_t cols) { return ceil_div(cols, 16) * 16; }
  static int64_t room_of(const GemmTerm& t) {
    return t.x.dtype == DType::bf16 ? 2 * ceil_div(t.x.cols, 128) * 128 + 64 : padded(t.x.cols);
  }
  static int64_t stride_of(std::span<const GemmTerm> terms) {
    int64_t floats = 0;
    for (const GemmTerm& t : terms) floats += room_of(t);
    return floats;
  }
};

// Whether products of integers use AVX512-VNNI where the CPU has it: it changes no bit. For tests.
bool& few_vnni();

}  // namespace qlora
