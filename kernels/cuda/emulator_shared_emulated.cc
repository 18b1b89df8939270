#include <algorithm>
#include <cstring>

#include "kernels/cuda/emulator_shared.h"
#include "kernels/cuda/order.h"
#include "memory/error.h"

namespace qlora::cuda::emulator {

void SharedShadow::begin_block() {
  if (order::watched()) {  // another block's memory
    const order::Unwatched fresh;
    memory_ = std::vector<Line>(memory_.size());
  }
  std::fill_n(data(), memory_.size() * sizeof(Line), static_cast<std::byte>(poison_));
  std::fill(entries_.begin(), entries_.end(), Entry());
}

void SharedShadow::poison(void* p, size_t bytes) { std::memset(p, poison_, bytes); }

bool SharedShadow::ordered(const Time& before, int thread) const {
  if (before.thread == kNobody || before.thread == thread || before.epoch < epoch_) return true;
  return warp_of(before) == thread / 32 && before.warp < warp_[thread];
}

// The readers that a writer must come after: who stands behind a barrier after all of them stands for them.
SharedShadow::Time SharedShadow::read_by(const Time& before, int thread) const {
  const Time now{static_cast<int16_t>(thread), epoch_, warp_[thread]};
  if (ordered(before, thread)) return now;
  if (warp_of(before) != thread / 32) return {kSeveral, epoch_, 0};
  return {static_cast<int16_t>(kSeveral - 1 - thread / 32), epoch_, std::max(before.warp, now.warp)};
}

bool SharedShadow::refuse(size_t i, const char* what, const Time& other) {
  wrong_ = cat("byte ", i * 2, " of shared memory ", what);
  if (other.thread >= 0)
    wrong_ += cat(" thread ", other.thread);
  else if (other.thread != kNobody)
    wrong_ += " several threads";
  return false;
}

bool SharedShadow::touch(const void* p, size_t bytes, Access access, int thread) {
  const size_t begin = index(p), end = begin + bytes / 2;
  for (size_t i = begin; i < end; ++i) {
    Entry& e = entries_[i];
    if (e.pending) return refuse(i, "touched before a copy to it was waited for, by", e.written);
    if (access == Access::read) {
      if (e.written.thread == kNobody) return refuse(i, "read that nobody has written", {});
      if (!ordered(e.written, thread))
        return refuse(i, "read with no barrier since it was written by", e.written);
      e.read = read_by(e.read, thread);
      continue;
    }
    if (!ordered(e.written, thread))
      return refuse(i, "written with no barrier since it was written by", e.written);
    if (!ordered(e.read, thread)) return refuse(i, "written with no barrier since it was read by", e.read);
    e = {{static_cast<int16_t>(thread), epoch_, warp_[thread]}, {}, access == Access::copy};
  }
  return true;
}

void SharedShadow::arrived(const void* p, size_t bytes, int thread) {
  const size_t begin = index(p);
  for (size_t i = begin; i < begin + bytes / 2; ++i)
    entries_[i] = {{static_cast<int16_t>(thread), epoch_, warp_[thread]}, {}, false};
}

}  // namespace qlora::cuda::emulator
