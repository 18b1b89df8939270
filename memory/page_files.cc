#include "memory/page_files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <memory>
#include <system_error>

namespace qlora {
namespace {

std::string reason(int error) { return std::generic_category().message(error); }

[[noreturn]] void fail_at(const std::string& path, uint64_t offset, bool write, int error) {
  const bool full = error == ENOSPC || error == EDQUOT || error == EFBIG;
  if (error == kFileShrank)
    fail(Category::io, path, ": ends before byte ", offset,
         ": the file shrank while it was being used; leave it in place and run again");
  fail(Category::io, path, ": byte ", offset, ": a page cannot be ", write ? "written" : "read", ": ",
       reason(error), "; ", full ? "free some space and run again" : "check the disk");
}

}  // namespace

PageFile::~PageFile() {
  if (fd_ >= 0) ::close(fd_);
}

// O_DIRECT if a read with our alignment works: file systems and disks differ in what they take.
void PageFile::go_direct() {
  const int flags = ::fcntl(fd_, F_GETFL);
  if (flags < 0 || ::fcntl(fd_, F_SETFL, flags | O_DIRECT) != 0) return;
  const std::unique_ptr<void, decltype(&std::free)> trial(
      std::aligned_alloc(PageBackend::kPageAlign, PageBackend::kPageAlign), &std::free);
  if (::pread(fd_, trial.get(), PageBackend::kPageAlign, 0) >= 0)
    direct_ = true;
  else
    ::fcntl(fd_, F_SETFL, flags);
}

PageFile PageFile::cached(const std::string& path, const FileId& id) {
  PageFile f;
  f.path_ = path;
  f.fd_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  struct stat info = {};
  if (f.fd_ < 0 || ::fstat(f.fd_, &info) != 0)
    fail(Category::io, path, ": cannot be opened again: ", reason(errno),
         "; leave it in place and run again");
  if (!(FileId{info.st_dev, info.st_ino, static_cast<uint64_t>(info.st_size)} == id))
    fail(Category::io, path, ": is another file than a moment ago; leave it in place and run again");
  f.bytes_ = id.size;
  ::posix_fadvise(f.fd_, 0, 0, POSIX_FADV_RANDOM);  // a hint
  return f;
}

PageFile PageFile::source(const std::string& path, const FileId& id) {
  PageFile f = cached(path, id);
  f.go_direct();
  return f;
}

void PageFile::read(uint64_t offset, void* to, size_t bytes) const {
  for (size_t done = 0; done < bytes;) {
    const ssize_t n =
        ::pread(fd_, static_cast<std::byte*>(to) + done, bytes - done, static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) fail_at(path_, offset + done, false, n == 0 ? kFileShrank : errno);
    done += static_cast<size_t>(n);
  }
}

PageFile PageFile::temporary(const std::string& folder, uint64_t bytes) {
  PageFile f;
  std::string name = folder + "/.pages-XXXXXX";
  f.fd_ = ::mkostemp(name.data(), O_CLOEXEC);
  if (f.fd_ < 0)
    fail(Category::io, folder, ": pages cannot be put there: ", reason(errno),
         "; name a folder that can be written to");
  ::unlink(name.c_str());
  f.path_ = name;
  f.bytes_ = bytes;
  int error;
  do error = ::posix_fallocate(f.fd_, 0, static_cast<off_t>(std::max<uint64_t>(bytes, 1)));
  while (error == EINTR);
  if (error != 0)
    fail(Category::io, folder, ": no room for ", (bytes + (1 << 20) - 1) >> 20,
         " MiB of pages on its disk: ", reason(error), "; free some space or use another folder");
  f.go_direct();
  return f;
}

PageFiles PageFiles::temporary(const std::string& folder, uint32_t pages, size_t page_bytes) {
  const size_t stride =
      (page_bytes + PageBackend::kPageAlign - 1) / PageBackend::kPageAlign * PageBackend::kPageAlign;
  PageFiles f;
  f.files.push_back(PageFile::temporary(folder, static_cast<uint64_t>(stride) * pages));
  for (uint32_t p = 0; p < pages; ++p) f.pages.push_back({{0, static_cast<uint64_t>(stride) * p, stride, 0}});
  return f;
}

std::string PageFiles::how() const {
  for (const PageFile& f : files)
    if (!f.direct()) return "through the page cache: the file system of " + f.path() + " knows no O_DIRECT";
  return "O_DIRECT";
}

size_t PageFiles::most_requests() const {
  size_t most = 0;
  for (const std::vector<PageExtent>& page : pages) {
    size_t n = 0;
    for (const PageExtent& e : page) n += (e.bytes + kRequestBytes - 1) / kRequestBytes;
    most = std::max(most, n);
  }
  return most;
}

void fail_transfer(const PageFiles& files, const PageFault& fault) {
  fail_at(files.files[fault.file].path(), fault.offset, fault.write, fault.error);
}

}  // namespace qlora
