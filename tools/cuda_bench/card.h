#pragma once
#include <algorithm>
#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "memory/cuda/stamp.h"
#include "memory/exec.h"
#include "quant/quantized_weight.h"
#include "tools/cuda_bench/report.h"
#include "tools/cuda_bench/sizes.h"

namespace qlora::bench {

// What every part measures with.
struct Bench {
  int device = 0;
  Sizes sizes;
  Report& report;
  // Nothing is begun after it.
  std::chrono::steady_clock::time_point deadline;
  // False once the time is up, and says what is left out.
  bool time_for(const std::string& what);
  bool cut = false;
};

double median(std::vector<double> v);

// Device memory, or pinned, that must be there: Category::memory with its bytes.
cuda::Memory take(int device, size_t bytes, cuda::MemoryKind kind = cuda::MemoryKind::device);

// Fills device memory with normal bf16 of that size, or with any bytes: repeated after some million elements,
// which are no whole rows. Zeros would run faster than what is trained on.
void draw_normal(cuda::Stream& stream, void* to, size_t bytes, float deviation);
void draw_bytes(cuda::Stream& stream, void* to, size_t bytes);

// A bf16 matrix on the device.
class DrawnMatrix {
 public:
  DrawnMatrix(cuda::Stream& stream, int64_t rows, int64_t cols, DType type = DType::bf16);
  Mat view() const { return view_; }
  ConstMat input() const { return view_; }
  size_t bytes() const { return memory_.bytes(); }

 private:
  cuda::Memory memory_;
  Mat view_;
};

// Scales of double quantization that make of random codes weights of the size that a model's have.
inline constexpr float kNestedAbsmax = 0.01f, kNestedOffset = 0.02f;
inline constexpr QuantizedSpec kNf4Spec{Format::nf4, 64, true};

// NF4 with double quantization, random codes, on the device.
class DrawnWeight {
 public:
  DrawnWeight(cuda::Stream& stream, int64_t rows, int64_t cols);
  const WeightView& view() const { return view_; }
  size_t bytes() const { return memory_.bytes(); }

 private:
  cuda::Memory memory_;
  WeightView view_;
};

// Seconds of one call of f(e), of `calls` put on e's stream one after the other.
template <class F>
double burst(Exec& e, int64_t calls, F&& f) {
  cuda::Stamp begin(e.stream().device()), end(e.stream().device());
  begin.record(e.stream());
  for (int64_t i = 0; i < calls; ++i) f(e);
  end.record(e.stream());
  end.synchronize();
  return std::max(end.seconds_since(begin), 1e-9) / static_cast<double>(calls);
}

// How many calls make a burst of so many seconds; warms up.
template <class F>
int64_t calls_of(Exec& e, double seconds, F&& f) {
  burst(e, 2, f);
  return std::clamp<int64_t>(static_cast<int64_t>(seconds / burst(e, 2, f)) + 1, 1, 20000);
}

// An op as training calls it: rehearsed, its workspace planned and taken once.
class Planned {
 public:
  using Op = std::function<void(Exec&)>;
  Planned(int device, Op op);
  Exec& exec() { return *exec_; }
  double flops() const { return trace_.flops(); }
  void operator()(Exec&) {
    const Phase phase(*exec_, trace_);
    op_(*exec_);
  }

 private:
  Op op_;
  Trace trace_{"benchmark"};
  cuda::Memory arena_, host_;
  std::unique_ptr<Exec> exec_;
};

// A rate that the card can do at most, measured whenever it is asked for.
class Roof {
 public:
  virtual ~Roof() = default;
  virtual std::string name() const = 0;
  virtual double rate(double seconds) = 0;  // a second: flops, or bytes read and written
};

struct Figure {
  double seconds, roof;  // of one call; the roof's rate
};
// f and the roof in turns, the median of each.
Figure in_turns(const Bench& b, Roof& roof, Exec& e, const std::function<void(Exec&)>& f);

}  // namespace qlora::bench
