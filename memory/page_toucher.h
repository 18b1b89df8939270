#pragma once
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <mutex>
#include <thread>
#include <vector>

namespace qlora {

// Makes writable anonymous memory resident, on threads of its own, from the front. What stands there stays:
// others may use the memory meanwhile.
class PageToucher {
 public:
  enum class How { populate, write };  // write: what kernels before 5.14 are left with, and for tests
  PageToucher(std::byte* begin, size_t bytes, int threads, How how = How::populate);
  ~PageToucher();  // waits for what is under way and leaves the rest
  PageToucher(const PageToucher&) = delete;
  PageToucher& operator=(const PageToucher&) = delete;

  // True: all is resident. False: `patience` is over, and it goes on. Category::memory when the system has no
  // pages left.
  bool wait(std::chrono::milliseconds patience);

 private:
  void work();
  bool touch(std::byte* piece, size_t bytes);

  std::byte* begin_;
  size_t bytes_;
  std::atomic<How> how_;
  std::atomic<size_t> next_{0};
  std::atomic<bool> failed_{false};
  std::mutex mutex_;
  std::condition_variable idle_;
  int working_;
  std::vector<std::thread> threads_;
};

}  // namespace qlora
