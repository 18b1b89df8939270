#pragma once
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <random>
#include <thread>

#include "memory/cuda/emulated.h"

// The emulated device's streams and events, for host_emulated.cc alone.
namespace qlora::cuda {

struct EventState {
  std::mutex mutex;
  std::condition_variable reached;
  uint64_t recorded = 0, done = 0;
  // The next record's number.
  uint64_t record();
  uint64_t last();
  void reach(uint64_t n);
  bool has_reached(uint64_t n);
  void wait_for(uint64_t n);      // a stream that is a thread
  void wait_on_host(uint64_t n);  // what has an order goes on meanwhile
};
using SharedEvent = std::shared_ptr<EventState>;

// Does its tasks in order: on a thread of its own, or, where streams have an order, on the host's, when it
// waits for an event and it is this stream's turn.
class Queue {
 public:
  struct Task {
    std::function<void()> run;  // null: waits for `after` alone
    SharedEvent after;
    uint64_t n = 0;
  };
  using Runner = std::function<void(const std::function<void()>&)>;

  // run(task): how a task is done.
  Queue(const EmulatedDevice& device, uint64_t seed, Runner run);
  ~Queue();
  Queue(const Queue&) = delete;
  void push(Task task);
  // Of a task: takes its time, where others run beside it.
  void linger();
  // Does one task of the stream whose turn it is; false: none of those that have an order can go on.
  static bool go_on();

 private:
  void work();
  bool can_go_on();
  void do_next();
  const StreamOrder order_;
  const bool one_by_one_;
  const Runner run_;
  std::mt19937_64 random_;
  std::mutex mutex_;
  std::condition_variable pushed_, drained_;
  bool busy_ = false, ends_ = false;
  std::deque<Task> tasks_;
  std::thread thread_;
};

}  // namespace qlora::cuda
