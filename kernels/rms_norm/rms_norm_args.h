#pragma once
#include "kernels/rms_norm/rms_norm.h"

// What rms_norm's dispatch hands to its bodies.
namespace qlora {

struct RmsNormForward {
  ConstMat x;
  const float* w;
  float offset, eps;
  Mat y;
  float* rstd;
};

struct RmsNormBackward {
  ConstMat dy, x;
  const float* w;
  float offset;
  const float* rstd;
  Mat dx;
};

void rms_norm_cuda(Exec& e, const RmsNormForward& a);
void rms_norm_cuda(Exec& e, const RmsNormBackward& a);

}  // namespace qlora
