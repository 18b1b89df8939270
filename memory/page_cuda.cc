#include "memory/page_cuda.h"

#include <algorithm>
#include <cstring>
#include <vector>

namespace qlora {
namespace {

size_t stride_of(const CudaPages& p) {
  return (p.page_bytes + PageBackend::kPageAlign - 1) / PageBackend::kPageAlign * PageBackend::kPageAlign;
}

// What both kinds share: streams and events. On a channel: `computed` is where the computation released the
// slot, `in` and `out` the ends of the last copy each way.
class StreamPages : public PageBackend {
 public:
  explicit StreamPages(const CudaPages& p)
      : compute_(*p.compute), in_(compute_.device()), out_(compute_.device()), last_out_(p.pages, -1) {
    for (int c = 0; c < p.channels; ++c) channels_.emplace_back(compute_.device());
  }

  void computed(int channel) override { at(channel).computed.record(compute_); }

 protected:
  struct Channel {
    explicit Channel(int device) : computed(device), in(device), out(device) {}
    cuda::Event computed, in, out;
    bool reads = false;  // the last transfer
  };
  Channel& at(int channel) { return channels_[static_cast<size_t>(channel)]; }

  // memory <- home, after all that used the memory or wrote the page.
  void copy_in(int channel, const PageTransfer& t, const std::byte* home) {
    Channel& c = at(channel);
    in_.wait(c.computed);
    in_.wait(c.out);
    if (const int o = last_out_[t.page]; o >= 0) in_.wait(at(o).out);
    in_.copy(t.memory, home, t.bytes);
    c.in.record(in_);
    c.reads = true;
  }
  // home <- memory, after the computation.
  void copy_out(int channel, const PageTransfer& t, std::byte* home) {
    Channel& c = at(channel);
    out_.wait(c.computed);
    out_.copy(home, t.memory, t.bytes);
    c.out.record(out_);
    c.reads = false;
    last_out_[t.page] = channel;
  }
  // What went out is waited for by the host: the end of a pass tells of errors.
  void join(int channel) {
    Channel& c = at(channel);
    c.reads ? compute_.wait(c.in) : c.out.synchronize();
  }
  void settle() noexcept {
    for (cuda::Stream* s : {&in_, &out_, &compute_}) try {
        s->synchronize();
      } catch (const Error&) {  // the device failed, which is why we are here
      }
  }

  cuda::Stream& compute_;
  cuda::Stream in_, out_;
  std::vector<Channel> channels_;
  std::vector<int> last_out_;  // of each page: the channel that last wrote it
};

class PinnedPages : public StreamPages {
 public:
  PinnedPages(const CudaPages& p, size_t budget)
      : StreamPages(p), stride_(stride_of(p)), pinned_(p.pages), pageable_(p.pages) {
    bool more = true;
    const auto granted = [&](size_t bytes) {
      cuda::Memory m;
      if (!more || bytes > budget) return m;
      m = cuda::Memory::allocate(cuda::MemoryKind::pinned, compute_.device(), bytes);
      if (m) budget -= bytes;
      return m;
    };
    // All at once where that is granted; else the staging buffers come first, then page by page.
    whole_ = granted(stride_ * p.pages);
    for (int c = 0; c < p.channels && !whole_; ++c)
      if (!staging_.emplace_back(granted(stride_)))
        fail(Category::memory, "pinned memory for ", p.channels, " staging buffers of ", stride_,
             " bytes is not granted; raise the limit on locked memory (ulimit -l) or page to a file");
    for (uint32_t i = 0; i < p.pages; ++i) {
      if (!whole_ && !(pinned_[i] = granted(stride_))) {
        more = false;
        pageable_[i].resize(stride_);
        ++pageable_count_;
      }
      if (std::byte* const home = pinned_home(i); home != nullptr) std::memset(home, 0, stride_);
    }
    leaving_.resize(static_cast<size_t>(p.channels));
  }
  ~PinnedPages() override { settle(); }

  std::string how() const override {
    const size_t pages = pinned_.size();
    if (pageable_count_ == 0) return "pinned memory";
    return cat("pinned memory for ", pages - pageable_count_, " of ", pages,
               " pages (no more is granted), staging for the others");
  }

  void start(int channel, const PageTransfer& t) override {
    std::byte* const home = pinned_home(t.page);
    if (home != nullptr) return t.write ? copy_out(channel, t, home) : copy_in(channel, t, home);
    std::byte* const staging = staging_[static_cast<size_t>(channel)].data();
    at(channel)
        .in.synchronize();  // the staging buffer's last use, unless it went out, which ready() waited for
    if (t.write) {
      copy_out(channel, t, staging);
      leaving_[static_cast<size_t>(channel)] = t;
      return;
    }
    std::memcpy(staging, pageable_[t.page].data(), t.bytes);
    copy_in(channel, t, staging);
  }

  bool ready(int channel) override {
    if (leaving_[static_cast<size_t>(channel)].bytes == 0) return true;  // streams keep the order
    if (!at(channel).out.done()) return false;
    leave(channel);
    return true;
  }
  void wait(int channel) override {
    if (leaving_[static_cast<size_t>(channel)].bytes != 0) {
      at(channel).out.synchronize();
      leave(channel);
    } else {
      join(channel);
    }
  }
  void abandon() noexcept override {
    settle();
    for (PageTransfer& t : leaving_) t = {};
  }

 private:
  std::byte* pinned_home(uint32_t page) const {
    return whole_ ? whole_.data() + stride_ * page : pinned_[page].data();
  }
  // From the staging buffer to where the page lives: what the device does not reach, the host copies.
  void leave(int channel) {
    PageTransfer& t = leaving_[static_cast<size_t>(channel)];
    std::memcpy(pageable_[t.page].data(), staging_[static_cast<size_t>(channel)].data(), t.bytes);
    t = {};
  }

  size_t stride_;
  cuda::Memory whole_;
  std::vector<cuda::Memory> staging_, pinned_;
  std::vector<std::vector<std::byte>> pageable_;
  size_t pageable_count_ = 0;
  std::vector<PageTransfer> leaving_;  // of each channel: on its way out to a pageable page; bytes 0: none
};

class ManagedPages : public StreamPages {
 public:
  ManagedPages(const CudaPages& p, cuda::Memory memory)
      : StreamPages(p), stride_(stride_of(p)), memory_(std::move(memory)) {
    std::memset(memory_.data(), 0, memory_.bytes());
    in_.prefer_host(memory_.data(), memory_.bytes());
  }
  ~ManagedPages() override { settle(); }
  std::string how() const override { return "managed memory"; }

  void start(int channel, const PageTransfer& t) override {
    std::byte* const home = memory_.data() + stride_ * t.page;
    (t.write ? out_ : in_).prefetch(home, stride_, true);
    t.write ? copy_out(channel, t, home) : copy_in(channel, t, home);
    (t.write ? out_ : in_).prefetch(home, stride_, false);
  }
  bool ready(int) override { return true; }  // streams keep the order
  void wait(int channel) override { join(channel); }
  void abandon() noexcept override { settle(); }

 private:
  size_t stride_;
  cuda::Memory memory_;
};

}  // namespace

std::unique_ptr<PageBackend> pinned_pages(const CudaPages& pages, size_t pinned_budget) {
  return std::make_unique<PinnedPages>(pages, pinned_budget);
}

std::unique_ptr<PageBackend> managed_pages(const CudaPages& pages, std::string& why_not) {
  const cuda::DeviceInfo info = cuda::device_info(pages.compute->device());
  const size_t bytes = stride_of(pages) * pages.pages;
  if (!info.concurrent_managed_access)
    why_not = info.name + " has no concurrent managed access";
  else if (bytes > info.free_bytes)
    why_not = cat("the pages take ", bytes, " bytes and ", info.name, " has ", info.free_bytes, " free");
  else if (cuda::Memory m = cuda::Memory::allocate(cuda::MemoryKind::managed, pages.compute->device(), bytes))
    return std::make_unique<ManagedPages>(pages, std::move(m));
  else
    why_not = info.name + " grants no managed memory";
  return nullptr;
}

}  // namespace qlora
