#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/cuda/emulator.h"

namespace qlora::cuda::emulator {

// A block's shared memory and, for every two bytes of it, who wrote and who read since when: two threads that
// touch the same place, one of them writing, must have a barrier of the block between them, or one of their
// warp.
class SharedShadow {
 public:
  SharedShadow(size_t bytes, int poison)
      : memory_((bytes + 15) / 16), bytes_(bytes), poison_(poison), entries_((bytes + 1) / 2) {}
  std::byte* data() { return reinterpret_cast<std::byte*>(memory_.data()); }
  size_t bytes() const { return bytes_; }

  void begin_block();                               // nothing is written, all is poison
  void next_epoch() { ++epoch_; }                   // a barrier was passed
  void warp_epoch(int thread) { ++warp_[thread]; }  // a barrier of the thread's warp was
  void poison(void* p, size_t bytes);
  // Whether it may be; else wrong() says why it may not. All of [p, p + bytes) is inside.
  bool touch(const void* p, size_t bytes, Access access, int thread);
  const std::string& wrong() const { return wrong_; }
  // A copy that `thread` has waited for.
  void arrived(const void* p, size_t bytes, int thread);

 private:
  // A thread's place in time: the block's barriers and its warp's that it has passed.
  struct Time {
    int16_t thread = kNobody;
    uint32_t epoch = 0, warp = 0;
  };
  // Several threads: of different warps; of one warp w, kSeveral - 1 - w.
  static constexpr int16_t kNobody = -1, kSeveral = -2;
  static int warp_of(const Time& t) { return t.thread >= 0 ? t.thread / 32 : kSeveral - 1 - t.thread; }
  struct Entry {
    Time written, read;
    bool pending = false;
  };
  bool ordered(const Time& before, int thread) const;
  Time read_by(const Time& before, int thread) const;
  bool refuse(size_t i, const char* what, const Time& other);
  size_t index(const void* p) const {
    return static_cast<size_t>(static_cast<const std::byte*>(p) -
                               reinterpret_cast<const std::byte*>(memory_.data())) /
           2;
  }
  struct alignas(16) Line {
    std::byte bytes[16];
  };

  std::vector<Line> memory_;
  size_t bytes_;
  int poison_;
  std::vector<Entry> entries_;
  std::string wrong_;
  uint32_t epoch_ = 0;
  uint32_t warp_[1024] = {};
};

}  // namespace qlora::cuda::emulator
