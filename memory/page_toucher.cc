#include "memory/page_toucher.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <exception>

#include "memory/error.h"

namespace qlora {
namespace {

constexpr int kPopulateWrite = 23;  // MADV_POPULATE_WRITE (Linux 5.14), which older headers lack
// Some huge pages: so few calls that they cost nothing, so many that no thread is left with the last of them.
constexpr size_t kPiece = size_t{8} << 20;

}  // namespace

PageToucher::PageToucher(std::byte* begin, size_t bytes, int threads, How how)
    : begin_(begin), bytes_(bytes), how_(how) {
  const size_t pieces = (bytes + kPiece - 1) / kPiece;
  working_ = static_cast<int>(std::min(static_cast<size_t>(std::max(threads, 1)), pieces));
  const int wanted = working_;
  threads_.reserve(static_cast<size_t>(wanted));
  for (int i = 0; i < wanted; ++i) {
    try {
      threads_.emplace_back([this] { work(); });
    } catch (const std::exception&) {  // no room for a thread: this one does its part
      work();
    }
  }
}

PageToucher::~PageToucher() {
  next_.store(bytes_);
  for (std::thread& t : threads_) t.join();
}

bool PageToucher::touch(std::byte* piece, size_t bytes) {
  if (how_.load() == How::populate) {
    int result;
    do result = madvise(piece, bytes, kPopulateWrite);
    while (result != 0 && (errno == EINTR || errno == EAGAIN));
    if (result == 0) return true;
    if (errno != EINVAL) return false;
    how_.store(How::write);
  }
  // An atomic "nothing" makes the page resident and leaves what another thread writes there.
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  for (size_t i = 0; i < bytes; i += page)
    __atomic_fetch_or(reinterpret_cast<unsigned char*>(piece + i), 0, __ATOMIC_RELAXED);
  return true;
}

void PageToucher::work() {
  for (size_t at = next_.fetch_add(kPiece); at < bytes_; at = next_.fetch_add(kPiece)) {
    if (touch(begin_ + at, std::min(kPiece, bytes_ - at))) continue;
    failed_.store(true);
    next_.store(bytes_);
  }
  const std::lock_guard lock(mutex_);
  if (--working_ == 0) idle_.notify_all();
}

bool PageToucher::wait(std::chrono::milliseconds patience) {
  std::unique_lock lock(mutex_);
  const bool done = idle_.wait_for(lock, patience, [this] { return working_ == 0; });
  if (failed_.load())
    fail(Category::memory, "the system has no ", bytes_,
         " bytes of memory left; free some, or give a smaller batch or sequence");
  return done;
}

}  // namespace qlora
