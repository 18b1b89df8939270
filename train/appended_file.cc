#include "train/appended_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "memory/error.h"

namespace qlora {

AppendedFile::AppendedFile(const std::string& path, bool fresh) : path_(path) {
  fd_ = ::open(path.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC | (fresh ? O_CREAT | O_EXCL : 0), 0644);
  if (fd_ < 0 && !(fresh && errno == EEXIST)) fail_with("opened");
}

AppendedFile::~AppendedFile() {
  if (fd_ >= 0) ::close(fd_);
}

AppendedFile::AppendedFile(AppendedFile&& o) noexcept
    : path_(std::move(o.path_)), fd_(std::exchange(o.fd_, -1)) {}

AppendedFile& AppendedFile::operator=(AppendedFile&& o) noexcept {
  std::swap(path_, o.path_);
  std::swap(fd_, o.fd_);
  return *this;
}

void AppendedFile::write(std::string_view text) {
  check(is_open(), path_, ": written to after its end");
  while (!text.empty()) {
    const ssize_t n = ::write(fd_, text.data(), text.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail_with("written");
    text.remove_prefix(static_cast<size_t>(n));
  }
}

void AppendedFile::finish() {
  const int fd = std::exchange(fd_, -1);
  const int error = ::fsync(fd) != 0 ? errno : 0;
  if (::close(fd) == 0 && error == 0) return;
  if (error != 0) errno = error;
  fail_with("written");
}

void AppendedFile::fail_with(const char* what) const {
  fail(Category::io, path_, ": cannot be ", what, ": ", std::strerror(errno),
       "; make room, check the disk and the folder's permissions, and resume");
}

}  // namespace qlora
