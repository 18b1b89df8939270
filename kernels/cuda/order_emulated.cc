#include "kernels/cuda/order.h"

// ThreadSanitizer's interface (sanitizer/tsan_interface.h), there or not.
extern "C" {
[[gnu::weak]] void __tsan_acquire(void*);
[[gnu::weak]] void __tsan_release(void*);
[[gnu::weak]] void __tsan_read_range_pc(void*, unsigned long, void*);
[[gnu::weak]] void* __tsan_create_fiber(unsigned);
[[gnu::weak]] void __tsan_destroy_fiber(void*);
[[gnu::weak]] void* __tsan_get_current_fiber();
[[gnu::weak]] void __tsan_switch_to_fiber(void*, unsigned);
[[gnu::weak]] void AnnotateIgnoreWritesBegin(const char*, int);
[[gnu::weak]] void AnnotateIgnoreWritesEnd(const char*, int);
}

namespace qlora::cuda::emulator::order {
namespace {
constexpr unsigned kNoSync = 1;
}

bool watched() { return &__tsan_create_fiber != nullptr; }

void release(void* point) {
  if (watched()) __tsan_release(point);
}
void acquire(void* point) {
  if (watched()) __tsan_acquire(point);
}
void reads(const void* p, size_t bytes, void* pc) {
  if (watched()) __tsan_read_range_pc(const_cast<void*>(p), bytes, pc);
}

void* create() { return watched() ? __tsan_create_fiber(0) : nullptr; }
void destroy(void* context) {
  if (context != nullptr) __tsan_destroy_fiber(context);
}
void* current() { return watched() ? __tsan_get_current_fiber() : nullptr; }
void switch_to(void* context) {
  if (watched()) __tsan_switch_to_fiber(context, kNoSync);
}
void release_as(void* context, void* point) {
  if (!watched()) return;
  void* const self = current();
  switch_to(context);
  release(point);
  switch_to(self);
}

Unwatched::Unwatched() {
  if (watched()) AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
}
Unwatched::~Unwatched() {
  if (watched()) AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
}

}  // namespace qlora::cuda::emulator::order
