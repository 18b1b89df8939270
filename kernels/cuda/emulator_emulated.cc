#include "kernels/cuda/emulator.h"

#include <cstring>
#include <deque>
#include <memory>
#include <thread>
#include <vector>

#include "kernels/cuda/device.h"
#include "kernels/cuda/emulator_shared.h"
#include "kernels/cuda/fiber.h"
#include "kernels/cuda/order.h"
#include "memory/cuda/emulated.h"
#include "memory/cuda/start.h"

namespace qlora::cuda::emulator {
namespace {

constexpr int kMostThreads = 1024;

// What ends a launch; caught where the fiber began.
struct Fault {
  std::string what;
};

enum class State : uint8_t { ready, at_barrier, in_warp, done };

struct Copy {
  void* to;
  const void* from;
  int bytes;
  int group;
};

struct Thread {
  State state = State::ready;
  Where where;             // of what it waits for, or waited for last
  const char* waits = "";  // for what
  std::vector<Copy> copies;
  size_t arrived = 0;  // copies waited for
  int committed = 0;   // groups
};

// Two sets of slots in turn: who has its results of one operation may already give to the next.
struct Warp {
  int arrived = 0;
  uint32_t operations = 0;
  const char* name = nullptr;
  Where where;
  WarpSlot slots[2][kWarp];
};

// Fibers of blocks that came before, for those that follow: a stack is not made anew each time. The lock is
// one that ThreadSanitizer does not see: it orders no kernels.
class Fibers {
 public:
  std::unique_ptr<std::deque<Fiber>> take() {
    const Lock lock(busy_);
    if (free_.empty()) return std::make_unique<std::deque<Fiber>>();
    auto out = std::move(free_.back());
    free_.pop_back();
    return out;
  }
  void give_back(std::unique_ptr<std::deque<Fiber>> fibers) {
    const Lock lock(busy_);
    free_.push_back(std::move(fibers));
  }

 private:
  struct Lock {
    explicit Lock(std::atomic_flag& f) : busy(f) {
      while (busy.test_and_set(std::memory_order_acquire)) std::this_thread::yield();
    }
    ~Lock() { busy.clear(std::memory_order_release); }
    std::atomic_flag& busy;
  };
  std::atomic_flag busy_;
  std::vector<std::unique_ptr<std::deque<Fiber>>> free_;
};
Fibers& all_fibers() {
  static Fibers f;
  return f;
}

class Machine {
 public:
  Machine(const LaunchArgs& args, int variant)
      : args_(args),
        reversed_((variant & 1) != 0),
        threads_(static_cast<size_t>(args.threads)),
        warps_(static_cast<size_t>(args.threads / kWarp)),
        fibers_(all_fibers().take()),
        shared_(args.shared_bytes, (variant & 2) != 0 ? 0x3c : 0xff) {
    while (fibers_->size() < sets() * threads_.size()) fibers_->emplace_back();
  }
  ~Machine() { all_fibers().give_back(std::move(fibers_)); }

  // All blocks, one after another. What went wrong, or nothing.
  std::string run();

  Place place;
  Thread& now() { return threads_[static_cast<size_t>(place.thread)]; }
  Warp& warp() { return warps_[static_cast<size_t>(place.thread / kWarp)]; }
  SharedShadow& shared() { return shared_; }
  void wait(State state, const char* what, Where where);
  void barrier(Where where);
  void warp_barrier(Where where);
  WarpSlot* arrive_in_warp(const char* name, const WarpSlot& mine, void (*finish)(WarpSlot*), Where where);
  [[noreturn]] void fault(const std::string& what) { throw Fault{what}; }

 private:
  static void enter(void* machine);
  void run_block();
  bool run_warp(int w);
  void release_barrier();
  std::string stuck() const;

  // Where blocks are not to be ordered, a fiber's past is its thread's: blocks have one of several sets of
  // fibers, picked so that two of them seldom have the same.
  static size_t sets() { return order::watched() ? 3 : 1; }
  Fiber& fiber(size_t t) { return (*fibers_)[set_ * threads_.size() + t]; }
  // Points of order.h: the launch's, and those of the block's barriers and its warps', two of each in turn
  // (who goes on may come to the next while others have yet to leave the last).
  struct Points {
    char barrier[2] = {};
    char warps[kMostThreads / kWarp][2] = {};
  };

  const LaunchArgs& args_;
  size_t set_ = 0;
  char begin_ = 0, end_ = 0;
  std::unique_ptr<Points> points_;
  uint32_t barriers_ = 0;
  bool reversed_;
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  std::unique_ptr<std::deque<Fiber>> fibers_;
  SharedShadow shared_;
  Fiber scheduler_;
  std::string fault_;
};

thread_local Machine* machine = nullptr;

std::string line(Where where) { return cat(where.file_name(), ":", where.line()); }

std::string Machine::run() {
  machine = this;
  const int64_t blocks = args_.grid_x * args_.grid_y;
  for (int64_t i = 0; i < blocks && fault_.empty(); ++i) {
    const int64_t b = reversed_ ? blocks - 1 - i : i;
    place.block_x = static_cast<int>(b % args_.grid_x);
    place.block_y = static_cast<int>(b / args_.grid_x);
    run_block();
  }
  machine = nullptr;
  for (size_t t = 0; t < threads_.size() && !fault_.empty(); ++t) order::release_as(fiber(t).order(), &end_);
  order::acquire(&end_);
  if (fault_.empty()) return "";
  return cat("kernel launched at ", line(args_.where), ", block ", place.block_x, ",", place.block_y, ": ",
             fault_);
}

void Machine::run_block() {
  shared_.begin_block();
  if (order::watched()) {
    const order::Unwatched fresh;
    points_ = std::make_unique<Points>();
  }
  set_ = (static_cast<uint32_t>(place.block_y * 7919 + place.block_x) * 2654435769u >> 8) % sets();
  order::release(&begin_);
  for (Warp& w : warps_) w.arrived = 0;
  for (size_t t = 0; t < threads_.size(); ++t) {
    threads_[t].state = State::ready;
    threads_[t].where = Where();
    threads_[t].copies.clear();
    threads_[t].arrived = 0;
    threads_[t].committed = 0;
    fiber(t).restart(&Machine::enter, this);
  }
  while (fault_.empty()) {
    bool any = false;
    const int count = static_cast<int>(warps_.size());
    for (int w = 0; w < count && fault_.empty(); ++w) any |= run_warp(reversed_ ? count - 1 - w : w);
    if (any || !fault_.empty()) continue;
    size_t done = 0, waiting = 0;
    for (const Thread& t : threads_) {
      done += t.state == State::done;
      waiting += t.state == State::at_barrier;
    }
    if (done == threads_.size()) return;
    if (waiting == threads_.size())
      release_barrier();
    else
      fault_ = stuck();
  }
}

// Its threads in turn until none can go on.
bool Machine::run_warp(int w) {
  bool any = false;
  for (bool again = true; again && fault_.empty();) {
    again = false;
    for (int l = 0; l < kWarp && fault_.empty(); ++l) {
      const int t = w * kWarp + (reversed_ ? kWarp - 1 - l : l);
      if (threads_[static_cast<size_t>(t)].state != State::ready) continue;
      place.thread = t;
      scheduler_.switch_to(fiber(static_cast<size_t>(t)));
      again = any = true;
    }
  }
  return any;
}

void Machine::release_barrier() {
  for (Thread& t : threads_) {
    if (t.where.line() != threads_[0].where.line() || t.where.file_name() != threads_[0].where.file_name())
      fault_ = cat("threads wait at different barriers, ", line(threads_[0].where), " and ", line(t.where));
    t.state = State::ready;
  }
  shared_.next_epoch();
  ++barriers_;
}

std::string Machine::stuck() const {
  std::string out = "threads wait for others that do not come:";
  const Thread* last = nullptr;
  for (size_t t = 0; t < threads_.size(); ++t) {
    const Thread& x = threads_[t];
    const bool same = last != nullptr && last->state == x.state && last->where.line() == x.where.line();
    last = &x;
    if (!same)
      out += cat(" from thread ", t,
                 x.state == State::done ? ": ended;" : cat(": ", x.waits, " at ", line(x.where), ";"));
  }
  return out;
}

void Machine::enter(void* self) {
  Machine& m = *static_cast<Machine*>(self);
  order::acquire(&m.begin_);
  try {
    m.args_.thread();
    if (m.now().arrived < m.now().copies.size()) m.fault("an asynchronous copy is never waited for");
  } catch (const Fault& f) {
    const Thread& t = m.now();
    m.fault_ = cat("thread ", m.place.thread, ": ", f.what);
    if (t.where.line() != 0) m.fault_ += cat("; after its ", t.waits, " at ", line(t.where));
  }
  m.now().state = State::done;
  order::release(&m.end_);
  m.fiber(static_cast<size_t>(m.place.thread)).switch_to(m.scheduler_);
}

void Machine::wait(State state, const char* what, Where where) {
  const int me = place.thread;
  Thread& t = now();
  t.state = state;
  t.waits = what;
  t.where = where;
  fiber(static_cast<size_t>(me)).switch_to(scheduler_);
}

void Machine::barrier(Where where) {
  char* const point = points_ != nullptr ? &points_->barrier[barriers_ % 2] : nullptr;
  order::release(point);
  wait(State::at_barrier, "barrier", where);
  order::acquire(point);
}

void Machine::warp_barrier(Where where) {
  char* const point =
      points_ != nullptr ? &points_->warps[place.thread / kWarp][warp().operations % 2] : nullptr;
  order::release(point);
  arrive_in_warp("warp_barrier", {}, nullptr, where);
  order::acquire(point);
  shared_.warp_epoch(place.thread);
}

WarpSlot* Machine::arrive_in_warp(const char* name, const WarpSlot& mine, void (*finish)(WarpSlot*),
                                  Where where) {
  Warp& w = warp();
  WarpSlot* const slots = w.slots[w.operations % 2];
  if (w.arrived == 0) {
    w.name = name;
    w.where = where;
  } else if (w.where.line() != where.line() || w.name != name) {
    fault(cat(name, " at ", line(where), " where the warp's others are in ", w.name, " at ", line(w.where)));
  }
  slots[place.thread % kWarp] = mine;
  if (++w.arrived < kWarp) {
    wait(State::in_warp, name, where);
    return slots;
  }
  w.arrived = 0;
  ++w.operations;
  if (finish != nullptr) finish(slots);
  const auto first = static_cast<size_t>(place.thread / kWarp * kWarp);
  for (size_t l = 0; l < kWarp; ++l) threads_[first + l].state = State::ready;
  now().waits = name;
  now().where = where;
  return slots;
}

struct Launch {
  LaunchArgs args;
  int variant;
};

void run_launch(void* argument) {
  const std::unique_ptr<Launch> l(static_cast<Launch*>(argument));
  const std::string fault = Machine(l->args, l->variant).run();
  if (!fault.empty()) break_device(fault);
  ++launches;
}

}  // namespace

const Place& place() { return machine->place; }

void barrier(Where where) { machine->barrier(where); }
void warp_barrier(Where where) { machine->warp_barrier(where); }
WarpSlot* warp_operation(const char* name, const WarpSlot& mine, void (*finish)(WarpSlot*), Where where) {
  return machine->arrive_in_warp(name, mine, finish, where);
}

std::byte* take(size_t& used, size_t bytes) {
  const size_t begin = used;
  used += (bytes + 15) / 16 * 16;
  if (used > machine->shared().bytes())
    machine->fault(cat(used, " bytes of shared memory are taken, ", machine->shared().bytes(), " are there"));
  return machine->shared().data() + begin;
}
void outside(int64_t i, int64_t count) {
  machine->fault(cat("element ", i, " of ", count, " in shared memory"));
}
void touch(const void* p, size_t bytes, Access access) {
  if (!machine->shared().touch(p, bytes, access, machine->place.thread))
    machine->fault(machine->shared().wrong());
}
void touch_row(const void* p) {
  if (reinterpret_cast<uintptr_t>(p) % 16 != 0) machine->fault("matrix rows off their alignment");
  touch(p, 16, Access::read);
}

void copy_async(void* to, const void* from, int bytes) {
  if (reinterpret_cast<uintptr_t>(to) % 16 != 0 ||
      (bytes != 0 && reinterpret_cast<uintptr_t>(from) % 16 != 0))
    machine->fault("an asynchronous copy off its alignment of 16 bytes");
  if (bytes < 0 || bytes > 16) machine->fault("an asynchronous copy of no 0 to 16 bytes");
  touch(to, 16, Access::copy);
  machine->shared().poison(to, 16);
  order::reads(from, static_cast<size_t>(bytes), __builtin_return_address(0));
  const order::Unwatched grows;
  machine->now().copies.push_back({to, from, bytes, machine->now().committed});
}
void commit_copies() { ++machine->now().committed; }
void wait_copies(int latest) {
  Thread& t = machine->now();
  for (; t.arrived < t.copies.size() && t.copies[t.arrived].group < t.committed - latest; ++t.arrived) {
    const Copy& c = t.copies[t.arrived];
    std::memset(c.to, 0, 16);
    if (c.bytes > 0) std::memcpy(c.to, c.from, static_cast<size_t>(c.bytes));
    machine->shared().arrived(c.to, 16, machine->place.thread);
  }
}

std::vector<KernelFacts>& kernels() {
  static std::vector<KernelFacts> list;
  return list;
}

void launch(Stream& stream, LaunchArgs args) {
  check(args.threads > 0 && args.threads <= kMostThreads && args.threads % kWarp == 0 && args.grid_x >= 0 &&
            args.grid_x <= INT32_MAX && args.grid_y >= 0 && args.grid_y <= 65535,
        line(args.where), ": launch of ", args.grid_x, " x ", args.grid_y, " blocks of ", args.threads,
        " threads");
  check(current_device() == stream.device(), line(args.where),
        ": launch on a stream of cuda:", stream.device(), ", where cuda:", current_device(), " is current");
  check(args.shared_bytes <= find(stream.device()).shared_bytes, line(args.where), ": launch with ",
        args.shared_bytes, " bytes of shared memory");
  if (args.grid_x == 0 || args.grid_y == 0) return;
  stream.call(&run_launch, new Launch{std::move(args), variant});
}

}  // namespace qlora::cuda::emulator
