#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

namespace qlora::cuda {

// Which stream goes on. `threads`: each has a thread. Else nothing is done before the host waits for an event
// or a stream; then one task at a time, of the oldest stream whose next one waits for no event, or of the
// youngest. So what no event holds back comes too late or too early every time: of two streams, each wait
// that matters is missed in one of the two orders.
enum class StreamOrder : uint8_t { threads, oldest_first, youngest_first };

// The device that host_emulated.cc plays, set by tests before they use it. Its memory is the host's. Streams
// are threads: each copy first turns its destination to poison, then takes its time (by `seed`), so what is
// not waited for is seen, and ThreadSanitizer sees a missing wait whatever the time.
struct EmulatedDevice {
  uint64_t seed = 1;
  size_t device_bytes = SIZE_MAX, pinned_bytes = SIZE_MAX;  // what is granted of each in all
  size_t shared_bytes = size_t{99} << 10;                   // that a block may have: a consumer card's
  bool concurrent_managed_access = true;
  int64_t fail_copy = -1;  // the copy, counted from now, that fails; the error stays, as CUDA's do
  // As apart as a card is from its host: device memory allocated from here on faults when the host touches
  // it, and a kernel that is handed memory which neither device nor system has allocated for it is an error.
  // Each task of a stream that is a thread is waited for when it is put there.
  bool apart = false;
  StreamOrder order = StreamOrder::threads;
};
void emulate(const EmulatedDevice& device);

// From a task of a stream: what it did is wrong, and every call from here on says so, as a real device's do.
// The first such text is kept.
void break_device(const std::string& why);

// This thread's (memory/cuda/current.h).
int current_device();

// Of a kernel's arguments: Category::internal when one of them points to a stack or into the program, which
// no card reaches, or, where the device is apart, to other memory that is not the device's.
void verify_reach(const void* arguments, size_t bytes, const std::string& launch);

}  // namespace qlora::cuda
