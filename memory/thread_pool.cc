#include "memory/thread_pool.h"

#include <algorithm>
#include <chrono>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace qlora {
namespace {

// 20 to 200 microseconds where a pause is long: what a thread that sleeps costs, itself and whoever wakes it,
// is little on a machine of one's own and much in a virtual one. Waits that a little more spinning would have
// ended make the next ones longer, long ones (cores shared with other programs) shorter. More threads than
// cores never do: a thread that spins is in the way of the one that it waits for.
constexpr int kLeastSpins = 500, kMostSpins = 5000;
constexpr std::chrono::microseconds kLongWait{150};
thread_local int spins = kLeastSpins, most_spins = kLeastSpins;

inline void pause() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

// Returns once `a` is no longer `value`.
void await_change(const std::atomic<uint32_t>& a, uint32_t value) {
  for (int i = 0; i < spins; ++i) {
    if (a.load(std::memory_order_acquire) != value) return;
    pause();
  }
  const auto start = std::chrono::steady_clock::now();
  a.wait(value, std::memory_order_acquire);
  const bool soon = std::chrono::steady_clock::now() - start < kLongWait;
  spins = soon ? std::min(most_spins, spins * 2) : std::max(kLeastSpins, spins / 2);
}

void end(std::vector<std::thread>& workers, std::atomic<bool>& stop, std::atomic<uint32_t>& round) {
  stop.store(true);
  round.fetch_add(1, std::memory_order_release);
  round.notify_all();
  for (std::thread& t : workers) t.join();
}

}  // namespace

ThreadPool::ThreadPool(int threads) {
  const bool crowded = static_cast<unsigned>(threads) > std::thread::hardware_concurrency();
  const int most = most_spins = crowded ? kLeastSpins : kMostSpins;
  spins = kLeastSpins;
  try {
    for (int i = 1; i < threads; ++i)
      workers_.emplace_back([this, i, most] {
        most_spins = most;
        work(i);
      });
  } catch (...) {  // no room for one more thread: those that run must end before their handles go
    end(workers_, stop_, round_);
    throw;
  }
  // All have begun when it returns: what a thread allocates as it begins is not left for some later loop.
  share(
      0, [](void*, int64_t, int) {}, nullptr);
}

ThreadPool::~ThreadPool() { end(workers_, stop_, round_); }

// Tasks begin in the order of their numbers: one may wait for what a smaller one does (attention's turns).
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
