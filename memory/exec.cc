#include "memory/exec.h"

#include <sched.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "memory/cuda/host.h"
#include "memory/touch_pages.h"

namespace qlora {
namespace {

void* reserve(size_t bytes) {
  void* p = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return p == MAP_FAILED ? nullptr : p;
}

// Addresses only: no page of it is ever touched. Less where the address space is limited (ulimit -v).
size_t reservation_bytes() {
  static const size_t bytes = [] {
    size_t n = size_t{1} << 44;
    for (; n > size_t{1} << 20; n /= 2)
      if (void* p = reserve(n)) {
        munmap(p, n);
        break;
      }
    return n;
  }();
  return bytes;
}

[[noreturn]] void no_addresses() {
  fail(Category::memory,
       "no address space is left to plan the run in; raise the limit (ulimit -v unlimited)");
}

constexpr int kMostTouching = 8;  // more do not make the kernel faster

size_t aligned(size_t bytes) { return (bytes + Trace::kAlign - 1) / Trace::kAlign * Trace::kAlign; }

}  // namespace

void Buffer::reset() {
  if (exec_ != nullptr) exec_->release(*this);
  exec_ = nullptr;
  trace_ = nullptr;
  data_ = nullptr;
}

Exec::Exec(Device device, int threads, std::byte* arena, std::byte* host_arena)
    : device_(device), target_(device), threads_(threads), arena_(arena), host_arena_(host_arena) {
  check(threads >= 1, threads, " threads");
  if (threads > 1 && !rehearsing()) pool_ = std::make_unique<ThreadPool>(threads);
  if (on_cuda()) stream_ = std::make_unique<cuda::Stream>(device.index);
}

Exec Exec::rehearsal(int threads, Device target) {
  Exec e({DeviceKind::rehearsal, 0}, threads, nullptr);
  e.target_ = target;
  e.reservation_ = static_cast<std::byte*>(reserve(reservation_bytes()));
  if (e.reservation_ == nullptr) no_addresses();
  return e;
}

Exec::Exec(Exec&& o) noexcept
    : device_(o.device_),
      target_(o.target_),
      threads_(o.threads_),
      arena_(o.arena_),
      host_arena_(o.host_arena_),
      pool_(std::move(o.pool_)),
      stream_(std::move(o.stream_)),
      poison_(o.poison_),
      trace_(o.trace_),
      next_(o.next_),
      block_(o.block_),
      times_(o.times_),
      reservation_(std::exchange(o.reservation_, nullptr)),
      handed_out_(o.handed_out_) {}

Exec::~Exec() {
  if (reservation_ != nullptr) munmap(reservation_, reservation_bytes());
}

Buffer Exec::allocate(Region region, const char* name, size_t bytes, Place where) {
  check(trace_ != nullptr, "allocation outside a phase: ", name);
  if (!on_cuda()) where = Place::device;
  bytes = aligned(bytes == 0 ? 1 : bytes);
  Buffer b;
  if (rehearsing()) {
    trace_->spans.push_back({name, region, block_, bytes, trace_->now++, Trace::kForever, 0, where});
    if (bytes > reservation_bytes() - handed_out_) no_addresses();
    b.data_ = reservation_ + handed_out_;
    handed_out_ += bytes;
  } else {
    check(trace_->laid_out && next_ < trace_->spans.size(), trace_->name, ": unplanned allocation ", name);
    const Span& s = trace_->spans[next_];
    check(std::strcmp(s.name, name) == 0 && bytes <= s.bytes && where == s.where, trace_->name, ": planned ",
          s.name, " of ", s.bytes, " bytes, asked for ", name, " of ", bytes);
    b.data_ = where == Place::device ? arena_ + trace_->base + s.offset
                                     : host_arena_ + trace_->host_base + s.offset;
    if (poison_ && where == Place::host) {  // the host writes there itself, at once
      stream().synchronize();
      std::memset(b.data_, 0xff, bytes);
    } else if (poison_) {
      poison(b.data_, bytes);
    }
  }
  b.exec_ = this;  // from here on its end is told to the trace
  b.trace_ = trace_;
  b.span_ = next_++;
  return b;
}

// In the order of the ops: one that had the span before may not have run yet.
void Exec::poison(void* data, size_t bytes) {
  if (on_cuda())
    stream().fill(data, 0xff, bytes);
  else
    std::memset(data, 0xff, bytes);
}

Matrix Exec::matrix(Region region, const char* name, DType dtype, int64_t rows, int64_t cols) {
  check(rows >= 0 && cols >= 0, name, ": ", rows, " x ", cols);
  Buffer b = allocate(region, name, static_cast<size_t>(rows) * static_cast<size_t>(cols) * size_of(dtype));
  const Mat view(b.data(), dtype, rows, cols, cols);
  return {std::move(b), view};
}

void Exec::release(const Buffer& b) {
  if (rehearsing()) b.trace_->spans[b.span_].died = b.trace_->now++;
}

Phase::Phase(Exec& exec, Trace& trace) : exec_(exec), former_(exec.trace_), former_next_(exec.next_) {
  check(exec.rehearsing() || trace.laid_out, trace.name, ": entered before it was laid out");
  exec.trace_ = &trace;
  exec.next_ = exec.rehearsing() ? trace.spans.size() : 0;
  check(exec.next_ == 0, trace.name, ": rehearsed twice");
}

Phase::~Phase() {
  exec_.trace_ = former_;
  exec_.next_ = former_next_;
}

Arena::Arena(size_t bytes) : bytes_(bytes) {
  if (bytes == 0) return;
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED)
    fail(Category::memory, "cannot reserve ", bytes,
         " bytes of memory; a smaller batch or sequence needs less");
  data_ = static_cast<std::byte*>(p);
  madvise(p, bytes, MADV_HUGEPAGE);
}

Arena::~Arena() {
  if (data_ != nullptr) munmap(data_, bytes_);
}

void Arena::touch() {
  cpu_set_t allowed;
  const int cpus = sched_getaffinity(0, sizeof allowed, &allowed) == 0 ? CPU_COUNT(&allowed) : 1;
  touch_pages(data_, bytes_, std::min(cpus, kMostTouching));
}

}  // namespace qlora
