#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

namespace qlora {

// One transfer between the memory of a slot and the place where a page lives.
struct PageTransfer {
  bool write = false;  // memory -> page
  uint32_t page = 0;
  std::byte* memory = nullptr;  // a multiple of kPageAlign
  size_t bytes = 0;  // from the page's first byte; memory up to the next kPageAlign may be used too
};

// Where pages live while no slot holds them. Transfers run beside the computation. Each goes over a channel,
// which carries one at a time; the pager has a channel for every slot. A transfer that failed (Category::io,
// naming file and place) is reported by the next ready() or wait() of its channel, and once. Belongs to the
// thread that computes.
class PageBackend {
 public:
  // What O_DIRECT asks of offsets, memory and sizes on every disk we know.
  static constexpr size_t kPageAlign = 4096;

  virtual ~PageBackend() = default;  // no transfer is under way any more when it returns
  // How pages travel, for the report ("io_uring, O_DIRECT").
  virtual std::string how() const = 0;
  // Only when ready(channel), and when no transfer of the same page is under way on another channel.
  virtual void start(int channel, const PageTransfer& transfer) = 0;
  // Whether the next transfer of this channel, or of its page, may start. Does not block.
  virtual bool ready(int channel) = 0;
  // Returns when the computation may use the memory of the channel's last transfer.
  virtual void wait(int channel) = 0;
  // The computation so far is what a transfer started later waits for; a backend whose device computes
  // asynchronously marks the place here. The pager calls it when a slot is released.
  virtual void computed(int channel) = 0;
  // Waits for all channels and forgets their errors: nothing touches their memory any more.
  virtual void abandon() noexcept = 0;
};

}  // namespace qlora
