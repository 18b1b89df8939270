#pragma once
#include "kernels/rows/rows.h"

// CUDA's bodies of the ops on rows.
namespace qlora {

// y[to[i]] = x[from[i]] for `count` rows; from, to: null means i itself.
void copy_rows_cuda(Exec& e, const ConstMat& x, const int32_t* from, const Mat& y, const int32_t* to,
                    int64_t count);
void zero_rows_cuda(Exec& e, const Mat& y);
void cast_rows_cuda(Exec& e, const ConstMat& x, const Mat& y);

}  // namespace qlora
