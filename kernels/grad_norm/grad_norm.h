#pragma once
#include <span>

#include "memory/exec.h"

namespace qlora {

// sqrt of the sum of squares, summed in double over chunks of fixed length in a fixed order: the same for any
// threads. NaN or Inf in x comes out as NaN or Inf.
double l2_norm(Exec& e, std::span<const float> x);

}  // namespace qlora
