#pragma once
#include <utility>

#include "memory/cuda/host.h"

namespace qlora::cuda {

// A place in a stream at which the device notes the time: for measurements, since it costs what an Event does
// not. Bodies are beside Event's (host_*.cc).
class Stamp {
 public:
  explicit Stamp(int device);
  ~Stamp();
  Stamp(Stamp&& o) noexcept : handle_(std::exchange(o.handle_, nullptr)) {}
  Stamp(const Stamp&) = delete;
  void record(Stream& stream);
  void synchronize() const;  // the host waits until it is reached
  // Of the device's clock, both having been reached.
  double seconds_since(const Stamp& earlier) const;

 private:
  void* handle_ = nullptr;
};

}  // namespace qlora::cuda
