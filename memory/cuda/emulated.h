#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

namespace qlora::cuda {

// The device that host_emulated.cc plays, set by tests before they use it. Its memory is the host's. Streams
// are threads: each copy first turns its destination to poison, then takes its time (by `seed`), so what is
// not waited for is seen, and ThreadSanitizer sees a missing wait whatever the time.
struct EmulatedDevice {
  uint64_t seed = 1;
  size_t device_bytes = SIZE_MAX, pinned_bytes = SIZE_MAX;  // what is granted of each in all
  bool concurrent_managed_access = true;
  int64_t fail_copy = -1;  // the copy, counted from now, that fails; the error stays, as CUDA's do
};
void emulate(const EmulatedDevice& device);

// From a task of a stream: what it did is wrong, and every call from here on says so, as a real device's do.
// The first such text is kept.
void break_device(const std::string& why);

}  // namespace qlora::cuda
