#include "memory/touch_pages.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>

#include "memory/error.h"
#include "memory/thread_pool.h"

namespace qlora {
namespace {

constexpr int kPopulateWrite = 23;  // MADV_POPULATE_WRITE (Linux 5.14), which older headers lack
// Some huge pages: so few calls that they cost nothing, so many that no thread is left with the last of them.
constexpr size_t kPiece = size_t{8} << 20;

// Whether the system had the pages.
bool touch(std::byte* piece, size_t bytes, Touch how) {
  if (how == Touch::populate) {
    int result;
    do result = madvise(piece, bytes, kPopulateWrite);
    while (result != 0 && (errno == EINTR || errno == EAGAIN));
    if (result == 0) return true;
    if (errno != EINVAL) return false;
  }
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  for (size_t i = 0; i < bytes; i += page) {
    volatile std::byte& byte = piece[i];
    byte = byte;
  }
  return true;
}

}  // namespace

void touch_pages(std::byte* begin, size_t bytes, int threads, Touch how) {
  std::atomic<bool> failed{false};
  const auto pieces = static_cast<int64_t>((bytes + kPiece - 1) / kPiece);
  auto touch_piece = [&](int64_t piece, int) {
    const size_t at = static_cast<size_t>(piece) * kPiece;
    if (!failed.load() && !touch(begin + at, std::min(kPiece, bytes - at), how)) failed.store(true);
  };
  ThreadPool(static_cast<int>(std::clamp<int64_t>(threads, 1, std::max<int64_t>(pieces, 1))))
      .run(pieces, touch_piece);
  if (failed.load())
    fail(Category::memory, "the system has no ", bytes,
         " bytes of memory left; free some, or give a smaller batch or sequence");
}

}  // namespace qlora
