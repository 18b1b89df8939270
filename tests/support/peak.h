#pragma once
#include <algorithm>
#include <chrono>

#define QLORA_BODY "tests/support/peak.inl"
#include "kernels/common/for_each_isa.h"

namespace qlora::testing {

// fp32 FLOP/s of one thread of this machine on the ISA in force, the best of several short runs: what a
// benchmark's figures are shares of.
inline double measured_peak() {
  constexpr int64_t kRounds = 2000000;
  double best = 0;
  volatile float sink = 0;
  for (int i = 0; i < 8; ++i) {
    const auto start = std::chrono::steady_clock::now();
    sink = QLORA_DISPATCH(peak_chains, kRounds, 1.f + sink * 0);
    const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
    best = std::max(best, kRounds * QLORA_DISPATCH(peak_flops_per_round) / time.count());
  }
  return best;
}

}  // namespace qlora::testing
