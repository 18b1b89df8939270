#pragma once
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace qlora {

// Threads that share out the tasks of one loop after another. Why not OpenMP here: how long its threads spin
// between loops hangs on an environment variable read before main; where cores are shared with other
// programs, spinning made a step tens of times slower. These spin for some microseconds, the time from one op
// to the next, and then sleep.
class ThreadPool {
 public:
  // `threads` in all: the caller is one of them.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  // f(task, worker) for every task in [0, tasks), worker in [0, threads): which worker takes which task is
  // left open. Returns when all are done, with everything they wrote visible. Not reentrant. f must not
  // throw.
  template <class F>
  void run(int64_t tasks, F& f) {
    share(
        tasks, [](void* function, int64_t task, int worker) { (*static_cast<F*>(function))(task, worker); },
        &f);
  }

 private:
  using Call = void (*)(void*, int64_t, int);
  void share(int64_t tasks, Call call, void* function);
  void take_tasks(int worker);
  void work(int worker);

  std::vector<std::thread> workers_;
  std::atomic<uint32_t> round_{0}, busy_{0};
  std::atomic<int64_t> next_{0};
  std::atomic<bool> stop_{false};
  int64_t tasks_ = 0;
  Call call_ = nullptr;
  void* function_ = nullptr;
};

}  // namespace qlora
