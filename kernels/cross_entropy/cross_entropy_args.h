#pragma once
#include "kernels/cross_entropy/cross_entropy.h"

// What cross_entropy's dispatch hands to its bodies.
namespace qlora {

struct CrossEntropyArgs {
  ConstMat logits;
  const int32_t* labels;
  float softcap;
  Mat gradient;  // empty: not wanted
  float grad_scale;
  float* loss;
  uint8_t* hit;
};

void cross_entropy_cuda(Exec& e, const CrossEntropyArgs& a);

}  // namespace qlora
