#pragma once
#include "kernels/dropout/dropout.h"

// What dropout's dispatch hands to its bodies.
namespace qlora {

struct DropoutArgs {
  uint64_t module_key;
  uint32_t threshold;
  float scale;
  const uint64_t* tokens;
  ConstMat x;
  Mat y;
};

// y = or y +=.
void dropout_forward_cuda(Exec& e, const DropoutArgs& a);
void dropout_backward_cuda(Exec& e, const DropoutArgs& a);

}  // namespace qlora
