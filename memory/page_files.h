#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "memory/file.h"
#include "memory/page_backend.h"

namespace qlora {

// A file that transfers go to past the page cache (O_DIRECT); through it where the file system knows no
// O_DIRECT.
class PageFile {
 public:
  // An existing file, read-only. Category::io when it cannot be opened or is no longer the file `id`.
  static PageFile source(const std::string& path, const FileId& id);
  // The same, through the page cache: for pieces of no particular place and size.
  static PageFile cached(const std::string& path, const FileId& id);
  // A file of our own in `folder` that no name leads to: it goes when it is closed, however the run ends. Its
  // room is reserved at once and reads as zero bytes; Category::io when the disk has not that much.
  static PageFile temporary(const std::string& folder, uint64_t bytes);
  ~PageFile();
  PageFile(PageFile&& o) noexcept { swap(o); }
  PageFile& operator=(PageFile&& o) noexcept {
    swap(o);
    return *this;
  }
  // Fills [to, to + bytes) from `offset`. Category::io. Only what is cached.
  void read(uint64_t offset, void* to, size_t bytes) const;
  int descriptor() const { return fd_; }
  const std::string& path() const { return path_; }
  uint64_t bytes() const { return bytes_; }
  bool direct() const { return direct_; }

 private:
  PageFile() = default;
  void swap(PageFile& o) {
    std::swap(fd_, o.fd_);
    std::swap(path_, o.path_);
    std::swap(bytes_, o.bytes_);
    std::swap(direct_, o.direct_);
  }
  void go_direct();
  int fd_ = -1;
  std::string path_;
  uint64_t bytes_ = 0;
  bool direct_ = false;
};

// A part of a page: `bytes` of a file from `offset` on, at byte `at` of the page. `offset` and `at` are
// multiples of PageBackend::kPageAlign.
struct PageExtent {
  size_t file = 0;
  uint64_t offset = 0;
  size_t bytes = 0, at = 0;
};

// Where pages lie on disk: pieces of one or several files.
struct PageFiles {
  std::vector<PageFile> files;
  std::vector<std::vector<PageExtent>> pages;

  // `pages` pages of `page_bytes` in one temporary file.
  static PageFiles temporary(const std::string& folder, uint32_t pages, size_t page_bytes);
  // "O_DIRECT", or which file goes through the page cache and why.
  std::string how() const;
  // f(file, offset, memory, bytes, needed) for the requests of a transfer, each of at most kRequestBytes:
  // `bytes` is a multiple of kPageAlign, and the first `needed` of them matter (a file may end there).
  template <class F>
  void for_each_request(const PageTransfer& t, F&& f) const;
  size_t most_requests() const;  // of any page
  static constexpr size_t kRequestBytes = size_t{4} << 20;
};

// What became of one request: `error` as in errno (0: all right), at a byte of a file.
struct PageFault {
  int error = 0;
  size_t file = 0;
  uint64_t offset = 0;
  bool write = false;
};
// Category::io, one line.
[[noreturn]] void fail_transfer(const PageFiles& files, const PageFault& fault);
// A request that transferred nothing: the file is shorter than it was.
inline constexpr int kFileShrank = -1;

template <class F>
void PageFiles::for_each_request(const PageTransfer& t, F&& f) const {
  for (const PageExtent& e : pages[t.page]) {
    if (e.at >= t.bytes) continue;
    const size_t wanted = e.bytes < t.bytes - e.at ? e.bytes : t.bytes - e.at;
    for (size_t done = 0; done < wanted; done += kRequestBytes) {
      const size_t needed = wanted - done < kRequestBytes ? wanted - done : kRequestBytes;
      const size_t bytes =
          (needed + PageBackend::kPageAlign - 1) / PageBackend::kPageAlign * PageBackend::kPageAlign;
      f(e.file, e.offset + done, t.memory + e.at + done, bytes, needed);
    }
  }
}

}  // namespace qlora
