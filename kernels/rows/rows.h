#pragma once
#include <cstdint>
#include <span>

#include "memory/exec.h"
#include "memory/view.h"

namespace qlora {

// y[i] = x[index[i]]. x [T, C], y [index.size(), C] of one dtype; indices in [0, T).
void gather_rows(Exec& e, const ConstMat& x, std::span<const int32_t> index, const Mat& y);

// y[index[i]] = x[i]; other rows of y are left alone. Indices differ from each other.
void scatter_rows(Exec& e, const ConstMat& x, std::span<const int32_t> index, const Mat& y);

// y = 0.
void zero_rows(Exec& e, const Mat& y);

// y = x rounded to y's dtype; fp32 or bf16 each. x and y of one shape, no aliasing.
void cast_rows(Exec& e, const ConstMat& x, const Mat& y);

}  // namespace qlora
