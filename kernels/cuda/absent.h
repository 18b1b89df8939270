#pragma once
#include "memory/error.h"

namespace qlora::cuda {

// The body of every *_nocuda.cc: an Exec on a CUDA device cannot be made in that build
// (memory/cuda/host_nocuda.cc says so to the user), so nothing comes here.
[[noreturn]] inline void absent() {
  check(false, "a CUDA body in a build without CUDA");
  __builtin_unreachable();
}

}  // namespace qlora::cuda
