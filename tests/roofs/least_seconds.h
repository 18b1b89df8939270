#pragma once
#include <algorithm>

#include "memory/exec.h"
#include "tests/roofs/roofs.h"

namespace qlora::testing {

inline constexpr int kRuns = 10;
inline constexpr double kRunSeconds = 4e-3;  // of one: the other threads' waking is nothing beside it

// The least seconds of `runs` runs of f(thread) on all threads.
template <class F>
double least_seconds(const Exec& e, int runs, F&& f) {
  double best = 1e9;
  for (int i = 0; i < runs; ++i) {
    const double begin = now(e.threads());
    e.parallel(e.threads(), [&](int64_t thread, int) { f(thread); });
    best = std::min(best, now(e.threads()) - begin);
  }
  return best;
}

}  // namespace qlora::testing
