#include <pthread.h>
#include <sys/mman.h>

#include <atomic>
#include <chrono>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <utility>

#include "memory/cuda/current.h"
#include "memory/cuda/emulated.h"
#include "memory/cuda/host.h"
#include "memory/cuda/queue_emulated.h"
#include "memory/cuda/stamp.h"
#include "memory/cuda/start.h"

// The linker's: where the program's own constants and variables lie.
extern "C" const char __executable_start, _end;

namespace qlora::cuda {
namespace {

struct Allocation {
  size_t bytes;
  bool apart;  // a mapping of its own, which only tasks may touch
};

// What all streams share. `used` counts bytes by kind; managed memory counts as the device's.
struct Machine {
  std::mutex mutex;
  EmulatedDevice device;
  size_t used_device = 0, used_pinned = 0;
  std::atomic<int64_t> copies_left{-1};  // before the one that fails; a lock would order streams
  uint64_t streams = 0;
  std::map<const std::byte*, Allocation> allocations;
  int tasks = 0;  // under way
  std::atomic<bool> failed{false};
  std::string why;

  void protect(int protection) const {
    for (const auto& [data, a] : allocations)
      if (a.apart) mprotect(const_cast<std::byte*>(data), a.bytes, protection);
  }
  // What tasks do, with the device's memory in reach.
  void run(const std::function<void()>& task) {
    const auto count = [&](int change) {
      const std::lock_guard lock(mutex);
      if (tasks == 0 && change > 0) protect(PROT_READ | PROT_WRITE);
      tasks += change;
      if (tasks == 0) protect(PROT_NONE);
    };
    count(1);
    task();
    count(-1);
  }
};
Machine& machine() {
  static Machine m;
  return m;
}

void verify() {
  Machine& m = machine();
  if (!m.failed) return;
  const std::lock_guard lock(m.mutex);
  fail(Category::io, "emulated device: ", m.why);
}

bool is_the_one_to_fail() { return machine().copies_left.fetch_sub(1, std::memory_order_relaxed) == 0; }

EventState& state_of(void* handle) { return **static_cast<SharedEvent*>(handle); }

Queue& queue_of(void* handle) { return *static_cast<Queue*>(handle); }

// A card reaches neither, though nothing is apart (the tests' heap is a card's, tests/cuda/heap.cc).
bool is_the_programs(uintptr_t address) {
  thread_local const std::pair<uintptr_t, uintptr_t> stack = [] {
    pthread_attr_t attributes;
    void* begin = nullptr;
    size_t bytes = 0;
    if (pthread_getattr_np(pthread_self(), &attributes) != 0) return std::pair<uintptr_t, uintptr_t>();
    pthread_attr_getstack(&attributes, &begin, &bytes);
    pthread_attr_destroy(&attributes);
    return std::pair{reinterpret_cast<uintptr_t>(begin), reinterpret_cast<uintptr_t>(begin) + bytes};
  }();
  return (address >= stack.first && address < stack.second) ||
         (address >= reinterpret_cast<uintptr_t>(&__executable_start) &&
          address < reinterpret_cast<uintptr_t>(&_end));
}

// Whether something of this process lies there.
bool is_readable([[maybe_unused]] uintptr_t address) {
#ifdef __SANITIZE_ADDRESS__  // whose shadow lies where pairs of small numbers point to
  return false;
#endif
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    uintptr_t begin = 0, end = 0;
    char mode = '-';
    if (std::sscanf(line.c_str(), "%" SCNxPTR "-%" SCNxPTR " %c", &begin, &end, &mode) == 3 &&
        address >= begin && address < end)
      return mode == 'r';
  }
  return false;
}

}  // namespace

void emulate(const EmulatedDevice& device) {
  Machine& m = machine();
  const std::lock_guard lock(m.mutex);
  m.device = device;
  m.copies_left = device.fail_copy;
  m.streams = 0;
  m.failed = false;
  m.why.clear();
}

void break_device(const std::string& why) {
  Machine& m = machine();
  const std::lock_guard lock(m.mutex);
  if (!m.failed) m.why = why;
  m.failed = true;
}

namespace {
thread_local int current = 0;
}
void make_current(int device) { current = device; }
int current_device() { return current; }

int runtime_version() { return 13000; }

Found find(int) {
  Found f;
  f.runtime = f.driver = runtime_version();
  f.devices = 1;
  f.name = "emulated";
  f.major = 8;
  const std::lock_guard lock(machine().mutex);
  f.shared_bytes = machine().device.shared_bytes;
  return f;
}

void verify_reach(const void* arguments, size_t bytes, const std::string& launch) {
  Machine& m = machine();
  const std::lock_guard lock(m.mutex);
  for (size_t i = 0; i + sizeof(uintptr_t) <= bytes; i += sizeof(uintptr_t)) {
    uintptr_t word = 0;
    std::memcpy(&word, static_cast<const char*>(arguments) + i, sizeof word);
    const auto* const p = reinterpret_cast<const std::byte*>(word);
    // Not a small member with padding behind it, which GCC 12 does not clear behind arrays.
    if (word % 256 < 16 || word % 4 != 0) continue;
    check(!is_the_programs(word), launch,
          ": the kernel is handed what lies on a stack or in the program itself, in bytes ", i,
          " of its arguments");
    if (!m.device.apart) continue;
    auto at = m.allocations.upper_bound(p);
    if (at != m.allocations.begin() && p <= (--at)->first + at->second.bytes) continue;
    check(!is_readable(word), launch, ": the kernel is handed the host's own memory, in bytes ", i,
          " of its arguments");
  }
}

int device_count() { return 1; }
DeviceInfo device_info(int device) {
  make_current(device);
  Machine& m = machine();
  const std::lock_guard lock(m.mutex);
  return {"emulated",
          8,
          0,
          m.device.device_bytes,
          m.device.device_bytes - m.used_device,
          m.device.concurrent_managed_access};
}

Memory Memory::allocate(MemoryKind kind, int device, size_t bytes) {
  make_current(device);
  Machine& m = machine();
  const std::lock_guard lock(m.mutex);
  Memory out;
  size_t& used = kind == MemoryKind::pinned ? m.used_pinned : m.used_device;
  if (bytes > (kind == MemoryKind::pinned ? m.device.pinned_bytes : m.device.device_bytes) - used) return out;
  used += bytes;
  const bool apart = m.device.apart && kind == MemoryKind::device && bytes > 0;
  void* const p = apart ? mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
                        : std::aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
  if (p == nullptr || p == MAP_FAILED) throw std::bad_alloc();
  out.data_ = static_cast<std::byte*>(p);
  m.allocations[out.data_] = {bytes, apart};
  out.kind_ = kind;
  out.device_ = device;
  out.bytes_ = bytes;
  return out;
}
Memory::~Memory() {
  if (data_ == nullptr) return;
  Machine& m = machine();
  const std::lock_guard lock(m.mutex);
  (kind_ == MemoryKind::pinned ? m.used_pinned : m.used_device) -= bytes_;
  const auto at = m.allocations.find(data_);
  if (at->second.apart)
    munmap(data_, bytes_);
  else
    std::free(data_);
  m.allocations.erase(at);
}

Event::Event(int) : handle_(new SharedEvent(std::make_shared<EventState>())) {}
Event::~Event() { delete static_cast<SharedEvent*>(handle_); }
void Event::record(Stream& stream) {
  verify();
  const uint64_t n = state_of(handle_).record();
  queue_of(stream.handle()).push({[event = *static_cast<SharedEvent*>(handle_), n] { event->reach(n); }, {}});
}
bool Event::done() const {
  verify();
  EventState& state = state_of(handle_);
  return state.has_reached(state.last());
}
void Event::synchronize() const {
  EventState& state = state_of(handle_);
  state.wait_on_host(state.last());
  verify();
}

// The host's clock stands in for the device's.
struct StampState {
  EventState event;
  std::chrono::steady_clock::time_point time;
};
using SharedStamp = std::shared_ptr<StampState>;

Stamp::Stamp(int) : handle_(new SharedStamp(std::make_shared<StampState>())) {}
Stamp::~Stamp() { delete static_cast<SharedStamp*>(handle_); }
void Stamp::record(Stream& stream) {
  verify();
  const SharedStamp stamp = *static_cast<SharedStamp*>(handle_);
  const uint64_t n = stamp->event.record();
  queue_of(stream.handle())
      .push({[stamp, n] {
               stamp->time = std::chrono::steady_clock::now();
               stamp->event.reach(n);
             },
             {}});
}
void Stamp::synchronize() const {
  StampState& stamp = **static_cast<SharedStamp*>(handle_);
  stamp.event.wait_on_host(stamp.event.last());
  verify();
}
double Stamp::seconds_since(const Stamp& earlier) const {
  const StampState &from = **static_cast<SharedStamp*>(earlier.handle_),
                   &to = **static_cast<SharedStamp*>(handle_);
  return std::chrono::duration<double>(to.time - from.time).count();
}

Stream::Stream(int device) : device_(device) {
  make_current(device);
  Machine& m = machine();
  const std::lock_guard lock(m.mutex);
  handle_ = new Queue(m.device, m.device.seed + ++m.streams,
                      [](const std::function<void()>& task) { machine().run(task); });
}
Stream::~Stream() { delete static_cast<Queue*>(handle_); }
void Stream::wait(const Event& event) {
  verify();
  queue_of(handle_).push({{}, *static_cast<SharedEvent*>(event.handle_), state_of(event.handle_).last()});
}
void Stream::copy(void* to, const void* from, size_t bytes) {
  verify();
  Queue& queue = queue_of(handle_);
  queue.push({[=, &queue] {
                if (is_the_one_to_fail()) break_device("a copy failed; check the card and its driver");
                std::memset(to, 0xff, bytes);
                queue.linger();
                if (!machine().failed) std::memcpy(to, from, bytes);
              },
              {}});
}
void Stream::fill(void* to, unsigned char byte, size_t bytes) {
  verify();
  queue_of(handle_).push({[=] { std::memset(to, byte, bytes); }, {}});
}
void Stream::prefetch(void*, size_t, bool) { verify(); }
void Stream::prefer_host(void*, size_t) { verify(); }
void Stream::call(void (*f)(void*), void* argument) {
  verify();
  queue_of(handle_).push({[=] { f(argument); }, {}});
}
void Stream::synchronize() {
  // Even after a failure: nothing is under way any more when it throws.
  const SharedEvent end = std::make_shared<EventState>();
  queue_of(handle_).push({[end] { end->reach(1); }, {}});
  end->wait_on_host(1);
  verify();
}

}  // namespace qlora::cuda
