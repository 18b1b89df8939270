#pragma once
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdlib>

#include "tests/roofs/roofs.h"
#include "tests/support/run_op.h"

namespace qlora::testing {

// Of every benchmark: QLORA_BENCH_THREADS, 1 where it is not set.
inline int bench_threads() {
  static const int threads = [] {
    const char* const given = std::getenv("QLORA_BENCH_THREADS");
    return given == nullptr ? 1 : std::max(1, std::atoi(given));
  }();
  return threads;
}

// Of every benchmark: its one iteration is as many calls as kSeconds hold, its time the best of them, so that
// operands are made once.
inline void measured(benchmark::internal::Benchmark* b) { b->UseManualTime()->Iterations(1); }
inline constexpr double kSeconds = 0.2;
inline constexpr int kLeastCalls = 3;

// Runs an op as training does, and leaves its trace; returns the best time of all calls, which a busy machine
// shows least in.
template <class F>
double best_seconds(benchmark::State& state, Trace* trace, F&& op) {
  const int threads = bench_threads();
  *trace = rehearse(threads, op);
  trace->lay_out();
  Arena arena(trace->bytes);
  arena.touch();
  Exec e({DeviceKind::cpu, 0}, threads, arena.data());
  double best = 1e9;
  for (auto _ : state) {
    double total = 0;
    for (int call = 0; call < kLeastCalls || total < kSeconds; ++call) {
      Phase phase(e, *trace);
      const double start = now(threads);
      op(e);
      const double time = now(threads) - start;
      total += time;
      best = std::min(best, time);
    }
    state.SetIterationTime(best);
  }
  state.SetLabel(name_of(active_isa()));
  return best;
}

// For an op that computes: the share of the machine's peak, whatever instructions reach it, and of what the
// instructions do that such operands are multiplied with. Both are measured beside it, before and after.
template <class F>
void measure_flops(benchmark::State& state, DType operands, F&& op) {
  const Arithmetic own = arithmetic_of(active_isa(), operands), fastest = fastest_arithmetic();
  const int threads = bench_threads();
  double peak = 0, own_peak = 0;
  const auto look_up = [&] {
    peak = std::max(peak, flops_per_second(fastest, threads));
    own_peak = own == fastest ? peak : std::max(own_peak, flops_per_second(own, threads));
  };
  look_up();
  Trace trace("benchmark");
  const double best = best_seconds(state, &trace, op);
  look_up();
  state.counters["GFLOP/s"] = trace.flops() / best * 1e-9;
  state.counters["peak%"] = 100 * trace.flops() / best / peak;
  state.counters["own%"] = 100 * trace.flops() / best / own_peak;
}

// For an op that moves: bytes read and written, and the share of what moving as many reaches, since such
// operands lie in caches as often as not.
template <class F>
void measure_bytes(benchmark::State& state, F&& op) {
  Trace trace("benchmark");
  const double best = best_seconds(state, &trace, op);
  double bytes = 0;
  for (const OpCost& o : trace.ops) bytes += o.bytes_read + o.bytes_written;
  state.counters["GB/s"] = bytes / best * 1e-9;
  state.counters["move%"] = 100 * move_seconds(bytes, bench_threads()) / best;
}

// For an op that reads what no cache holds: `bytes` of it an iteration, and their share of what the same
// threads read from memory when they do nothing else.
template <class F>
void measure_read(benchmark::State& state, double bytes, F&& op) {
  const double roof = read_bandwidth(bench_threads());
  Trace trace("benchmark");
  const double best = best_seconds(state, &trace, op);
  state.counters["GB/s"] = bytes / best * 1e-9;
  state.counters["read%"] = 100 * bytes / best / roof;
}

}  // namespace qlora::testing
