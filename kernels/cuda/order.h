#pragma once
#include <cstddef>

// What ThreadSanitizer is told of a kernel's threads, in programs that are linked with it (tests/races); in
// others nothing here does anything. The emulator itself is not watched, kernels and the emulated device are.
//
// Switching from one fiber to another orders nothing. What orders: a barrier, of the block or the warp; a
// launch's begin, before all its threads; its end, after them. So blocks are not ordered with one another.
namespace qlora::cuda::emulator::order {

bool watched();

// All that came before the releases of a point comes before what follows an acquire of it.
void release(void* point);
void acquire(void* point);
// `bytes` from p are read by the thread that runs, at the instruction `pc`.
void reads(const void* p, size_t bytes, void* pc);

// Fibers' contexts.
void* create();
void destroy(void* context);
void* current();
void switch_to(void* context);
void release_as(void* context, void* point);  // by another than the one that runs

// What is allocated in this scope has no past; what is freed is not looked at.
class Unwatched {
 public:
  Unwatched();
  ~Unwatched();
  Unwatched(const Unwatched&) = delete;
};

}  // namespace qlora::cuda::emulator::order
