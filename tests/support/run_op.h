#pragma once
#include <utility>

#include "memory/exec.h"

namespace qlora::testing {

// Runs f(Exec&) as training runs an op: first in rehearsal, then on the CPU out of an arena laid out from
// that rehearsal, whose every span is filled with NaN bytes when it is handed out. Returns the trace. f runs
// twice, and in rehearsal its ops compute nothing.
template <class F>
Trace run_planned(int threads, F&& f) {
  Trace trace("test");
  {
    Exec rehearsal = Exec::rehearsal(threads);
    Phase phase(rehearsal, trace);
    f(rehearsal);
  }
  trace.lay_out();
  Arena arena(trace.bytes);
  Exec exec({DeviceKind::cpu, 0}, threads, arena.data());
  exec.set_poison(true);
  Phase phase(exec, trace);
  f(exec);
  return trace;
}

// The trace of f alone, nothing computed.
template <class F>
Trace rehearse(int threads, F&& f) {
  Trace trace("test");
  Exec rehearsal = Exec::rehearsal(threads);
  Phase phase(rehearsal, trace);
  f(rehearsal);
  return trace;
}

}  // namespace qlora::testing
