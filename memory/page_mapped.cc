#include <sys/mman.h>

#include <cerrno>
#include <cstring>
#include <optional>
#include <system_error>

#include "memory/mapping_guard.h"
#include "memory/page_backends.h"

namespace qlora {
namespace {

// Copies happen when they must be done: a read when it is waited for, having been announced to the kernel
// when it started. Pages of the mapping are given up after each copy, so that only slots are resident.
class MappedPages : public PageBackend {
 public:
  MappedPages(const std::string& folder, uint32_t pages, size_t page_bytes, int channels)
      : stride_((page_bytes + kPageAlign - 1) / kPageAlign * kPageAlign),
        bytes_(stride_ * pages),
        file_(PageFile::temporary(folder, bytes_)),
        reads_(static_cast<size_t>(channels)) {
    void* p = ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, file_.descriptor(), 0);
    if (p == MAP_FAILED)
      fail(Category::memory, folder, ": ", bytes_,
           " bytes of pages cannot be mapped: ", std::generic_category().message(errno),
           "; raise the limit on address space (ulimit -v)");
    data_ = static_cast<std::byte*>(p);
    guard_.emplace(data_, bytes_, file_.path());
  }
  ~MappedPages() override {
    guard_.reset();
    ::munmap(data_, bytes_);
  }

  std::string how() const override { return "a mapped file"; }

  void start(int channel, const PageTransfer& t) override {
    std::byte* const page = data_ + stride_ * t.page;
    if (!t.write) {
      ::madvise(page, stride_, MADV_WILLNEED);
      reads_[static_cast<size_t>(channel)] = t;
      return;
    }
    std::memcpy(page, t.memory, t.bytes);
    ::msync(page, stride_, MS_ASYNC);
    ::madvise(page, stride_, MADV_DONTNEED);
  }
  bool ready(int) override { return true; }
  void wait(int channel) override {
    PageTransfer& t = reads_[static_cast<size_t>(channel)];
    if (t.memory == nullptr) return;
    std::byte* const page = data_ + stride_ * t.page;
    std::memcpy(t.memory, page, t.bytes);
    ::madvise(page, stride_, MADV_DONTNEED);
    t = {};
  }
  void computed(int) override {}
  void abandon() noexcept override {
    for (PageTransfer& t : reads_) t = {};
  }

 private:
  size_t stride_, bytes_;
  PageFile file_;
  std::vector<PageTransfer> reads_;  // announced, not copied yet; memory null: none
  std::byte* data_ = nullptr;
  std::optional<MappingGuard> guard_;
};

}  // namespace

std::unique_ptr<PageBackend> mapped_pages(const std::string& folder, uint32_t pages, size_t page_bytes,
                                          int channels) {
  return std::make_unique<MappedPages>(folder, pages, page_bytes, channels);
}

}  // namespace qlora
