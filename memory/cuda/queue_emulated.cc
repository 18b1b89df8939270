#include "memory/cuda/queue_emulated.h"

#include <algorithm>
#include <chrono>
#include <utility>
#include <vector>

namespace qlora::cuda {
namespace {

// The streams that have an order, by age.
struct Ordered {
  std::mutex mutex;  // of the one that goes on, too
  std::vector<Queue*> queues;
};
Ordered& ordered() {
  static Ordered o;
  return o;
}

}  // namespace

uint64_t EventState::record() {
  const std::lock_guard lock(mutex);
  return ++recorded;
}
uint64_t EventState::last() {
  const std::lock_guard lock(mutex);
  return recorded;
}
void EventState::reach(uint64_t n) {
  const std::lock_guard lock(mutex);
  done = std::max(done, n);
  reached.notify_all();
}
bool EventState::has_reached(uint64_t n) {
  const std::lock_guard lock(mutex);
  return done >= n;
}
void EventState::wait_on_host(uint64_t n) {
  while (!has_reached(n) && Queue::go_on()) {
  }
  wait_for(n);
}
void EventState::wait_for(uint64_t n) {
  std::unique_lock lock(mutex);
  reached.wait(lock, [&] { return done >= n; });
}

Queue::Queue(const EmulatedDevice& device, uint64_t seed, Runner run)
    : order_(device.order), one_by_one_(device.apart), run_(std::move(run)), random_(seed) {
  if (order_ == StreamOrder::threads) {
    thread_ = std::thread([this] { work(); });
    return;
  }
  const std::lock_guard lock(ordered().mutex);
  ordered().queues.push_back(this);
}

Queue::~Queue() {
  if (order_ == StreamOrder::threads) {
    {
      const std::lock_guard lock(mutex_);
      ends_ = true;
      pushed_.notify_one();
    }
    thread_.join();
    return;
  }
  while (!tasks_.empty() && go_on()) {
  }
  const std::lock_guard lock(ordered().mutex);
  std::erase(ordered().queues, this);
}

void Queue::push(Task task) {
  std::unique_lock lock(mutex_);
  tasks_.push_back(std::move(task));
  if (order_ != StreamOrder::threads) return;
  pushed_.notify_one();
  if (one_by_one_) drained_.wait(lock, [&] { return tasks_.empty() && !busy_; });
}

void Queue::linger() {
  if (order_ == StreamOrder::threads) std::this_thread::sleep_for(std::chrono::microseconds(random_() % 300));
}

void Queue::work() {
  std::unique_lock lock(mutex_);
  while (true) {
    pushed_.wait(lock, [&] { return !tasks_.empty() || ends_; });
    if (tasks_.empty()) return;
    const Task task = std::move(tasks_.front());
    tasks_.pop_front();
    busy_ = true;
    lock.unlock();
    if (task.after) task.after->wait_for(task.n);
    if (task.run) run_(task.run);
    lock.lock();
    busy_ = false;
    drained_.notify_all();
  }
}

bool Queue::can_go_on() {
  const std::lock_guard lock(mutex_);
  return !tasks_.empty() && (!tasks_.front().after || tasks_.front().after->has_reached(tasks_.front().n));
}

void Queue::do_next() {
  std::unique_lock lock(mutex_);
  const Task task = std::move(tasks_.front());
  tasks_.pop_front();
  lock.unlock();
  if (task.run) run_(task.run);
}

bool Queue::go_on() {
  Ordered& o = ordered();
  const std::lock_guard lock(o.mutex);
  Queue* next = nullptr;
  for (Queue* q : o.queues)
    if ((next == nullptr || q->order_ == StreamOrder::youngest_first) && q->can_go_on()) next = q;
  if (next != nullptr) next->do_next();
  return next != nullptr;
}

}  // namespace qlora::cuda
