#pragma once
#include <benchmark/benchmark.h>
#include <time.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "tests/support/peak.h"
#include "tests/support/run_op.h"

namespace qlora::testing {

// Time of this thread alone: other programs' turns on the core do not count.
inline double thread_seconds() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

// Runs an op on one thread as training does, and leaves its trace; returns the best time of all iterations,
// which a busy machine does not show in.
template <class F>
double best_seconds(benchmark::State& state, Trace* trace, F&& op) {
  *trace = rehearse(1, op);
  trace->lay_out();
  Arena arena(trace->bytes);
  arena.touch();
  Exec e({DeviceKind::cpu, 0}, 1, arena.data());
  double best = 1e9;
  for (auto _ : state) {
    Phase phase(e, *trace);
    const double start = thread_seconds();
    op(e);
    const double time = thread_seconds() - start;
    state.SetIterationTime(time);
    best = std::min(best, time);
  }
  return best;
}

// For an op that computes: the share of the thread's measured fp32 peak. Needs UseManualTime.
template <class F>
void measure_flops(benchmark::State& state, F&& op) {
  static const double peak = measured_peak();
  Trace trace("benchmark");
  const double best = best_seconds(state, &trace, op);
  state.counters["GFLOP/s"] = trace.flops() / best * 1e-9;
  state.counters["peak"] = trace.flops() / best / peak;
}

// For an op that moves: bytes read and written, and the same for a copy of as many. Needs UseManualTime.
template <class F>
void measure_bytes(benchmark::State& state, F&& op) {
  Trace trace("benchmark");
  const double best = best_seconds(state, &trace, op);
  double bytes = 0;
  for (const OpCost& o : trace.ops) bytes += o.bytes_read + o.bytes_written;
  std::vector<char> from(static_cast<size_t>(bytes / 2), 1), to(from.size());
  double copy = 1e9;
  for (int i = 0; i < 20; ++i) {
    const double start = thread_seconds();
    std::memcpy(to.data(), from.data(), from.size());
    benchmark::DoNotOptimize(to.data());
    benchmark::ClobberMemory();
    copy = std::min(copy, thread_seconds() - start);
  }
  state.counters["GB/s"] = bytes / best * 1e-9;
  state.counters["of_copy"] = copy / best;
}

}  // namespace qlora::testing
