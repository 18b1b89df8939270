#pragma once
#include <cmath>
#include <cstring>
#include <type_traits>
#include <typeinfo>

#include "kernels/cuda/emulator.h"
#include "kernels/cuda/grid.h"
#include "kernels/cuda/observer.h"
#include "memory/cuda/current.h"
#include "memory/cuda/emulated.h"
#include "memory/dtype.h"
#include "memory/exec.h"

// device.h for tests: the emulator.
#define QLORA_DEVICE inline

namespace qlora::cuda {

using Where = std::source_location;

inline int thread() { return emulator::place().thread; }
inline int lane() { return thread() % 32; }
inline int warp() { return thread() / 32; }
inline int block_x() { return emulator::place().block_x; }
inline int block_y() { return emulator::place().block_y; }
inline void barrier(Where where = Where::current()) { emulator::barrier(where); }
inline void warp_barrier(Where where = Where::current()) { emulator::warp_barrier(where); }

template <class T>
T shuffle(T v, int from, Where where = Where::current()) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  emulator::WarpSlot mine;
  std::memcpy(mine.words, &v, sizeof v);
  std::memcpy(&v, emulator::warp_operation("shuffle", mine, nullptr, where)[from & 31].words, sizeof v);
  return v;
}
template <class T>
T shuffle_xor(T v, int mask, Where where = Where::current()) {
  return shuffle(v, lane() ^ mask, where);
}

// An element of shared memory: knows reads from writes. The access comes first, so that ThreadSanitizer sees
// it before the emulator ends the launch for it.
template <class T>
class SharedElement {
 public:
  explicit SharedElement(T* p) : p_(p) {}
  SharedElement(const SharedElement&) = default;
  operator T() const {
    const T v = *p_;
    emulator::touch(p_, sizeof(T), emulator::Access::read);
    return v;
  }
  const SharedElement& operator=(T v) const {
    *p_ = v;
    emulator::touch(p_, sizeof(T), emulator::Access::write);
    return *this;
  }
  const SharedElement& operator=(const SharedElement& o) const { return *this = static_cast<T>(o); }
  const SharedElement& operator+=(T v) const { return *this = static_cast<T>(*this) + v; }

 private:
  T* p_;
};

template <class T>
class Shared {
 public:
  static_assert(sizeof(T) >= 2);
  Shared(T* data, int64_t count) : data_(data), count_(count) {}
  SharedElement<T> operator[](int i) const { return SharedElement<T>(at(i, 1)); }
  Shared from(int i) const {
    if (i < 0 || i > count_) emulator::outside(i, count_);
    return {data_ + i, count_ - i};
  }
  // The first of n elements from i.
  T* at(int64_t i, int64_t n) const {
    if (i < 0 || i + n > count_) emulator::outside(i < 0 ? i : i + n - 1, count_);
    return data_ + i;
  }

 private:
  T* data_;
  int64_t count_;
};

class SharedMemory {
 public:
  template <class T>
  Shared<T> take(int count) {
    return {reinterpret_cast<T*>(emulator::take(used_, static_cast<size_t>(count) * sizeof(T))), count};
  }

 private:
  size_t used_ = 0;
};

template <class T>
void copy_async16(Shared<T> s, int i, const void* from, int bytes) {
  emulator::copy_async(s.at(i, 16 / sizeof(T)), from, bytes);
}
inline void commit_copies() { emulator::commit_copies(); }
template <int kLatest>
void wait_copies() {
  emulator::wait_copies(kLatest);
}

// Each lane reads the row that it names.
inline emulator::WarpSlot matrix_row(Shared<bf16> s, int i) {
  emulator::WarpSlot mine;
  const void* const row = s.at(i, 8);
  std::memcpy(mine.words + 4, row, 16);
  emulator::touch_row(row);
  return mine;
}
inline void load_matrices(uint32_t (&r)[4], Shared<bf16> s, int i, Where where = Where::current()) {
  const auto* slots =
      emulator::warp_operation("load_matrices", matrix_row(s, i), &emulator::finish_load_matrices, where);
  std::memcpy(r, slots[lane()].words, sizeof r);
}
inline void load_matrices_transposed(uint32_t (&r)[4], Shared<bf16> s, int i,
                                     Where where = Where::current()) {
  const auto* slots = emulator::warp_operation("load_matrices_transposed", matrix_row(s, i),
                                               &emulator::finish_load_matrices_transposed, where);
  std::memcpy(r, slots[lane()].words, sizeof r);
}
inline void mma_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                     Where where = Where::current()) {
  emulator::WarpSlot mine;
  std::memcpy(mine.words, c, sizeof c);
  std::memcpy(mine.words + 4, a, sizeof a);
  mine.words[8] = b0;
  mine.words[9] = b1;
  std::memcpy(c, emulator::warp_operation("mma_bf16", mine, &emulator::finish_mma_bf16, where)[lane()].words,
              sizeof c);
}

inline float to_float(float x) { return x; }
inline float to_float(bf16 x) { return static_cast<float>(x); }
inline float to_float(f16 x) { return static_cast<float>(x); }
template <class T>
T from_float(float f) {
  return T(f);
}
inline uint32_t pack_bf16(float low, float high) {
  return static_cast<uint32_t>(bf16(low).bits) | static_cast<uint32_t>(bf16(high).bits) << 16;
}

inline float fma(float a, float b, float c) { return std::fma(a, b, c); }
inline float sqrt(float x) { return std::sqrt(x); }
inline float exp(float x) { return std::exp(x); }
inline double exp(double x) { return std::exp(x); }
inline double log(double x) { return std::log(x); }
inline float exp2(float x) { return std::exp2(x); }
inline float log(float x) { return std::log(x); }
inline float tanh(float x) { return std::tanh(x); }
inline float max(float a, float b) { return std::fmax(a, b); }

template <class Kernel>
void launch(Exec& e, Grid grid, size_t shared_bytes, const Kernel& kernel, Where where = Where::current()) {
  static_assert(std::is_trivially_copyable_v<Kernel> && sizeof(Kernel) <= 4096 && Kernel::kThreads % 32 == 0);
  check(emulator::Listed<Kernel>::done && shared_bytes <= shared_of<Kernel>(), where.file_name(), ":",
        where.line(), ": launch with ", shared_bytes,
        " bytes of shared memory, where the kernel's kShared says ", shared_of<Kernel>());
  make_current(e.stream().device());
  Kernel arguments = kernel;
#if __has_builtin(__builtin_clear_padding)  // what lies between members may look like a pointer
  __builtin_clear_padding(&arguments);
#endif
  verify_reach(&arguments, sizeof arguments, cat(where.file_name(), ":", where.line()));
  emulator::launch(e.stream(), {grid.x, grid.y, Kernel::kThreads, shared_bytes,
                                [kernel] { kernel(SharedMemory()); }, where});
  observe_launch(e.stream(), typeid(Kernel).name());
}

}  // namespace qlora::cuda
