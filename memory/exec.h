#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

#include "memory/error.h"
#include "memory/thread_pool.h"
#include "memory/trace.h"
#include "memory/view.h"

namespace qlora {

enum class DeviceKind : uint8_t { cpu, cuda, rehearsal };

struct Device {
  DeviceKind kind = DeviceKind::cpu;
  int index = 0;
};

class Exec;
namespace cuda {
class Stream;
}

// One span of the arena; gives it back when it dies. Movable, not copyable.
class Buffer {
 public:
  Buffer() = default;
  Buffer(Buffer&& o) noexcept { swap(o); }
  Buffer& operator=(Buffer&& o) noexcept {
    if (this != &o) {
      reset();
      swap(o);
    }
    return *this;
  }
  ~Buffer() { reset(); }
  void reset();
  explicit operator bool() const { return data_ != nullptr; }
  void* data() const { return data_; }
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  friend class Exec;
  void swap(Buffer& o) {
    std::swap(exec_, o.exec_);
    std::swap(trace_, o.trace_);
    std::swap(span_, o.span_);
    std::swap(data_, o.data_);
  }
  Exec* exec_ = nullptr;
  Trace* trace_ = nullptr;
  size_t span_ = 0;
  void* data_ = nullptr;
};

// A matrix that owns its span. Rows are padded to nothing: stride == cols.
class Matrix {
 public:
  Matrix() = default;
  Matrix(Buffer buffer, Mat view) : buffer_(std::move(buffer)), view_(view) {}
  operator Mat() const { return view_; }
  operator ConstMat() const { return view_; }
  const Mat& view() const { return view_; }
  explicit operator bool() const { return static_cast<bool>(buffer_); }
  void reset() {
    buffer_.reset();
    view_ = {};
  }

 private:
  Buffer buffer_;
  Mat view_;
};

// Where an op runs and from what memory. Every op takes one first; its checking half ends in `if (!e.op(...))
// return;`.
//
// On the device `rehearsal`, op() records and returns false, and allocate() records and hands out addresses
// of a reservation that faults when touched. On a real device op() returns true and allocate() hands out the
// span that the rehearsed trace has at the same place in the order. Not thread-safe: one Exec belongs to one
// thread.
class Exec {
 public:
  // An Exec that rehearses what will run on `target`, which need not be there; the traces it enters are
  // filled.
  static Exec rehearsal(int threads, Device target = {});
  // An Exec on the CPU, or on a CUDA device: then with a stream of its own, on which every op is put and
  // which nothing waits for but stream().synchronize() and the destructor. `arena` is that device's memory
  // and holds every phase at its base + offset; may be null as long as nothing is allocated. `host_arena`:
  // the same for what a CUDA device has in pinned host memory. Category::usage without CUDA.
  Exec(Device device, int threads, std::byte* arena, std::byte* host_arena = nullptr);
  Exec(const Exec&) = delete;
  Exec& operator=(const Exec&) = delete;
  Exec(Exec&& o) noexcept;
  ~Exec();

  Device device() const { return device_; }
  bool rehearsing() const { return device_.kind == DeviceKind::rehearsal; }
  // CUDA's bodies run, or are rehearsed: their workspace is theirs.
  bool on_cuda() const { return target_.kind == DeviceKind::cuda; }
  cuda::Stream& stream() const {
    check(stream_ != nullptr, "a stream of an Exec that has none");
    return *stream_;
  }
  int threads() const { return threads_; }
  // The trace of the phase in force.
  Trace& trace() const {
    check(trace_ != nullptr, "no phase is in force");
    return *trace_;
  }

  // Fills every span with NaN bytes when it is handed out, so that a read of what was never written shows.
  // For tests.
  void set_poison(bool on) { poison_ = on; }

  // `where`: Place::host is pinned host memory beside a CUDA device, the arena's own on a CPU.
  Buffer allocate(Region region, const char* name, size_t bytes, Place where = Place::device);
  Matrix matrix(Region region, const char* name, DType dtype, int64_t rows, int64_t cols);

  // The end of an op's checking half: true means compute.
  bool op(const char* name, double flops, double bytes_read, double bytes_written) {
    if (!rehearsing()) return true;
    check(trace_ != nullptr, "op outside a phase: ", name);
    trace_->ops.push_back({name, flops * times_, bytes_read * times_, bytes_written * times_, block_});
    return false;
  }

  // Which block of the decoder spans and ops belong to from here on; -1: none.
  void set_block(int block) { block_ = block; }

  // f(i) for i in [0, n): a loop whose passes allocate alike and free all they allocate, none more than the
  // first. A rehearsal goes round once, and counts its ops `weight` times (the first pass is a whole one, the
  // last often not); so a trace does not grow with the batch.
  template <class F>
  void loop(int64_t n, double weight, F&& f) {
    if (!rehearsing()) {
      const size_t first = next_;
      for (int64_t i = 0; i < n; ++i) {
        next_ = first;
        f(i);
      }
      return;
    }
    if (n == 0) return;
    const size_t first = next_;
    const double outer = std::exchange(times_, times_ * weight);
    f(int64_t{0});
    times_ = outer;
    for (size_t i = first; i < next_; ++i)
      check(trace_->spans[i].died != Trace::kForever, trace_->spans[i].name, " outlives its loop");
  }

  // f(task, worker) for task in [0, tasks), worker in [0, threads). Which worker takes which task is left
  // open, so a result must not depend on it. f must not throw.
  template <class F>
  void parallel(int64_t tasks, F&& f) const {
    if (pool_ == nullptr || tasks <= 1) {
      for (int64_t t = 0; t < tasks; ++t) f(t, 0);
      return;
    }
    pool_->run(tasks, f);
  }

 private:
  friend class Buffer;
  friend class Phase;
  void release(const Buffer& b);
  void poison(void* data, size_t bytes);
  Device device_, target_;  // they differ in rehearsal
  int threads_ = 1;
  std::byte* arena_ = nullptr;
  std::byte* host_arena_ = nullptr;
  std::unique_ptr<ThreadPool> pool_;  // null: one thread
  std::unique_ptr<cuda::Stream> stream_;
  bool poison_ = false;
  Trace* trace_ = nullptr;
  size_t next_ = 0;  // the next span of the trace in force
  int block_ = -1;
  double times_ = 1;                  // how often the loop in force goes round; rehearsal only
  std::byte* reservation_ = nullptr;  // rehearsal only
  size_t handed_out_ = 0;
};

// While it lives, allocations and ops belong to `trace`. Phases nest only over one that will allocate no more
// (the persistent one: adapters, gradients, moments).
class Phase {
 public:
  Phase(Exec& exec, Trace& trace);
  ~Phase();
  Phase(const Phase&) = delete;
  Phase& operator=(const Phase&) = delete;

 private:
  Exec& exec_;
  Trace* former_;
  size_t former_next_;
};

// The bytes that all phases of one device share: reserved once, before step 1.
class Arena {
 public:
  Arena() = default;
  // Zero bytes is an empty arena. Category::memory when the system has no room.
  explicit Arena(size_t bytes);
  ~Arena();
  Arena(Arena&& o) noexcept : data_(std::exchange(o.data_, nullptr)), bytes_(std::exchange(o.bytes_, 0)) {}
  Arena& operator=(Arena&& o) noexcept {
    std::swap(data_, o.data_);
    std::swap(bytes_, o.bytes_);
    return *this;
  }
  std::byte* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  // Makes every page resident, on as many threads as there are CPUs for this process: a step that began never
  // meets a shortage. (A virtual machine whose host has taken pages back may need a second for 1 GiB.)
  // Category::memory when there are none.
  void touch();

 private:
  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace qlora
