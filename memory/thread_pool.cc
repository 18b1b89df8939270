#include "memory/thread_pool.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace qlora {
namespace {

// About 20 microseconds: longer than the serial part between two ops, shorter than what a sleeping thread
// costs.
constexpr int kSpins = 500;

inline void pause() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

// Returns once `a` is no longer `value`.
void await_change(const std::atomic<uint32_t>& a, uint32_t value) {
  for (int i = 0; i < kSpins; ++i) {
    if (a.load(std::memory_order_acquire) != value) return;
    pause();
  }
  a.wait(value, std::memory_order_acquire);
}

void end(std::vector<std::thread>& workers, std::atomic<bool>& stop, std::atomic<uint32_t>& round) {
  stop.store(true);
  round.fetch_add(1, std::memory_order_release);
  round.notify_all();
  for (std::thread& t : workers) t.join();
}

}  // namespace

ThreadPool::ThreadPool(int threads) {
  try {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { work(i); });
  } catch (...) {  // no room for one more thread: those that run must end before their handles go
    end(workers_, stop_, round_);
    throw;
  }
  // All have begun when it returns: what a thread allocates as it begins is not left for some later loop.
  share(
      0, [](void*, int64_t, int) {}, nullptr);
}

ThreadPool::~ThreadPool() { end(workers_, stop_, round_); }

void ThreadPool::take_tasks(int worker) {
  for (int64_t t = next_.fetch_add(1, std::memory_order_relaxed); t < tasks_;
       t = next_.fetch_add(1, std::memory_order_relaxed))
    call_(function_, t, worker);
}

void ThreadPool::work(int worker) {
  for (uint32_t seen = 0;;) {
    await_change(round_, seen);
    seen = round_.load(std::memory_order_acquire);
    if (stop_.load()) return;
    take_tasks(worker);
    if (busy_.fetch_sub(1, std::memory_order_acq_rel) == 1) busy_.notify_one();
  }
}

void ThreadPool::share(int64_t tasks, Call call, void* function) {
  tasks_ = tasks;
  call_ = call;
  function_ = function;
  next_.store(0, std::memory_order_relaxed);
  busy_.store(static_cast<uint32_t>(workers_.size()), std::memory_order_relaxed);
  round_.fetch_add(1, std::memory_order_release);
  round_.notify_all();
  take_tasks(0);
  for (uint32_t left = busy_.load(std::memory_order_acquire); left != 0;
       left = busy_.load(std::memory_order_acquire))
    await_change(busy_, left);
}

}  // namespace qlora
