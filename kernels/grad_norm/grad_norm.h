#pragma once
#include <span>

#include "memory/exec.h"

namespace qlora {

// sqrt of the sum of squares, summed in double over chunks of fixed length in a fixed order: the same for any
// threads and any ISA. NaN or Inf in x comes out as NaN or Inf. 0 in rehearsal.
double l2_norm(Exec& e, std::span<const float> x);

}  // namespace qlora
