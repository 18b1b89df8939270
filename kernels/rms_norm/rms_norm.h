#pragma once
#include "memory/exec.h"
#include "memory/view.h"

namespace qlora {

// RMSNorm (Zhang and Sennrich 2019, arXiv:1910.07467): y = x * rstd * (offset + w), rstd = 1 / sqrt(mean(x^2)
// + eps), per row of x [T, C]. w fp32 [C]. x and y fp32 or bf16, independently; all arithmetic fp32. rstd
// fp32 [T] is written for the backward pass (null: not wanted). y may be x.
void rms_norm_forward(Exec& e, const ConstMat& x, const float* w, float offset, float eps, const Mat& y,
                      float* rstd);

// dx += the gradient to x, given dy (fp32 or bf16) and the forward's x, w and rstd. Weights are frozen: no
// dw. dx fp32 or bf16 [T, C], holds the residual's gradient before. No aliasing.
void rms_norm_backward(Exec& e, const ConstMat& dy, const ConstMat& x, const float* w, float offset,
                       const float* rstd, const Mat& dx);

}  // namespace qlora
