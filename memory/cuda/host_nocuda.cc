#include "memory/cuda/host.h"
#include "memory/cuda/stamp.h"
#include "memory/cuda/start.h"

// A build without CUDA: there is no device, so nothing of one can be made.
namespace qlora::cuda {

int runtime_version() { return 0; }

Found find(int) {
  Found f;
  f.built = false;
  return f;
}

namespace {

[[noreturn]] void absent() { fail(Category::usage, refusal(find(0), 0)); }

}  // namespace

int device_count() { return 0; }
DeviceInfo device_info(int) { absent(); }

Memory Memory::allocate(MemoryKind, int, size_t) { absent(); }
Memory::~Memory() = default;

Event::Event(int) { absent(); }
Event::~Event() = default;
void Event::record(Stream&) { absent(); }
bool Event::done() const { absent(); }
void Event::synchronize() const { absent(); }

Stamp::Stamp(int) { absent(); }
Stamp::~Stamp() = default;
void Stamp::record(Stream&) { absent(); }
void Stamp::synchronize() const { absent(); }
double Stamp::seconds_since(const Stamp&) const { absent(); }

Stream::Stream(int device) : device_(device) { absent(); }
Stream::~Stream() = default;
void Stream::wait(const Event&) { absent(); }
void Stream::copy(void*, const void*, size_t) { absent(); }
void Stream::fill(void*, unsigned char, size_t) { absent(); }
void Stream::prefetch(void*, size_t, bool) { absent(); }
void Stream::prefer_host(void*, size_t) { absent(); }
void Stream::call(void (*)(void*), void*) { absent(); }
void Stream::synchronize() { absent(); }

}  // namespace qlora::cuda
