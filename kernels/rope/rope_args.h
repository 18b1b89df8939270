#pragma once
#include "kernels/rope/rope.h"

// What rope's dispatch hands to its bodies.
namespace qlora {

struct RopeArgs {
  RopeTable table;
  const int32_t* positions;
  int heads, head_dim;
  bool inverse;
  Mat x;
};

void rope_cuda(Exec& e, const RopeArgs& a);

}  // namespace qlora
