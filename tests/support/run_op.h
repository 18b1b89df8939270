#pragma once
#include <utility>

#include "memory/cuda/host.h"
#include "memory/exec.h"

namespace qlora::testing {

// Where run_planned runs: the CPU unless a WithBody (body.h) says otherwise.
inline Device device_under_test;

// An arena that both the device and the test reach.
class TestArena {
 public:
  TestArena(Device device, size_t bytes) {
    if (device.kind == DeviceKind::cuda)
      managed_ = cuda::Memory::allocate(cuda::MemoryKind::managed, device.index, bytes + 1);
    else
      arena_ = Arena(bytes);
  }
  std::byte* data() const { return managed_ ? managed_.data() : arena_.data(); }

 private:
  Arena arena_;
  cuda::Memory managed_;
};

// Runs f(Exec&) as training runs an op: first in rehearsal, then on the device under test out of an arena
// laid out from that rehearsal, whose every span is filled with NaN bytes when it is handed out. Returns the
// trace. f runs twice, and in rehearsal its ops compute nothing.
template <class F>
Trace run_planned(int threads, F&& f) {
  Trace trace("test");
  {
    Exec rehearsal = Exec::rehearsal(threads, device_under_test);
    Phase phase(rehearsal, trace);
    f(rehearsal);
  }
  trace.lay_out();
  const TestArena arena(device_under_test, trace.bytes);
  const TestArena host(device_under_test, trace.host_bytes);
  Exec exec(device_under_test, threads, arena.data(), host.data());
  exec.set_poison(true);
  {
    Phase phase(exec, trace);
    f(exec);
  }
  if (exec.on_cuda()) exec.stream().synchronize();
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
