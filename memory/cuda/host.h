#pragma once
#include <cstddef>
#include <string>
#include <utility>

#include "memory/error.h"

namespace qlora::cuda {

// CUDA's host side: memory, streams, events, asynchronous copies. One of three bodies is linked: host_real.cc
// (the CUDA runtime), host_nocuda.cc (no device is ever there), host_emulated.cc (tests: threads for streams,
// see emulated.h). Every call of the runtime is checked; what fails is Category::memory when the device has
// no room, else Category::io, naming call, file and line.

struct DeviceInfo {
  std::string name;
  int major = 0, minor = 0;  // compute capability
  size_t total_bytes = 0, free_bytes = 0;
  bool concurrent_managed_access = false;  // not under WSL 2, nor on Windows
};

// 0: built without CUDA, no driver, or no card.
int device_count();
DeviceInfo device_info(int device);

enum class MemoryKind {
  device,
  pinned,  // host memory that copies reach directly; the system may grant little of it (WSL 2)
  managed  // one address on both sides, pages move
};

// An allocation; empty when there was no room. Bytes are undefined.
class Memory {
 public:
  Memory() = default;
  // Empty, not an error, when the device or the system refuses.
  static Memory allocate(MemoryKind kind, int device, size_t bytes);
  ~Memory();
  Memory(Memory&& o) noexcept { swap(o); }
  Memory& operator=(Memory&& o) noexcept {
    swap(o);
    return *this;
  }
  explicit operator bool() const { return data_ != nullptr; }
  std::byte* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  void swap(Memory& o) {
    std::swap(kind_, o.kind_);
    std::swap(device_, o.device_);
    std::swap(data_, o.data_);
    std::swap(bytes_, o.bytes_);
  }
  MemoryKind kind_ = MemoryKind::device;
  int device_ = 0;
  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
};

class Stream;

// A place in a stream. One never recorded has been reached.
class Event {
 public:
  explicit Event(int device);
  ~Event();
  Event(Event&& o) noexcept : handle_(std::exchange(o.handle_, nullptr)) {}
  Event(const Event&) = delete;
  void record(Stream& stream);
  bool done() const;
  void synchronize() const;  // the host waits

 private:
  friend class Stream;
  void* handle_ = nullptr;
};

// Work in order, beside the host and other streams. The destructor waits for it.
class Stream {
 public:
  explicit Stream(int device);
  ~Stream();
  Stream(const Stream&) = delete;
  // What follows waits for the place where `event` was recorded last.
  void wait(const Event& event);
  // Between any kinds of memory. Nobody may touch either side until it is waited for.
  void copy(void* to, const void* from, size_t bytes);
  void fill(void* to, unsigned char byte, size_t bytes);
  // Managed memory is to lie on the device, or on the host, from here on; and where it lies when nobody asks.
  void prefetch(void* managed, size_t bytes, bool to_device);
  void prefer_host(void* managed, size_t bytes);
  // f(argument) on a thread of the runtime, in its turn; f calls nothing of CUDA.
  void call(void (*f)(void*), void* argument);
  void synchronize();
  int device() const { return device_; }
  void* handle() const { return handle_; }  // cudaStream_t, for launches

 private:
  friend class Event;
  int device_;
  void* handle_ = nullptr;
};

}  // namespace qlora::cuda
