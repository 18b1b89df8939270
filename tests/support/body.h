#pragma once
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/common/isa.h"
#include "kernels/cuda/emulator.h"
#include "memory/cuda/emulated.h"
#include "tests/support/run_op.h"
#include "tests/support/tensor.h"

namespace qlora::testing {

// What an op's cases run on: the CPU with one instruction set, or CUDA's body in one variant of the emulator.
// All variants must give the same bits.
struct Body {
  Device device;
  Isa isa = Isa::scalar;
  int variant = 0;
  std::string name() const {
    return device.kind == DeviceKind::cuda ? cat("cuda ", variant) : std::string(name_of(isa));
  }
};

// With QLORA_TEST_BODIES in the environment those whose names begin so ("cuda", "cuda 0"): for programs that
// are about kernels alone.
inline std::vector<Body> bodies() {
  std::vector<Body> all, out;
  for (Isa isa : isas()) all.push_back({{DeviceKind::cpu, 0}, isa, 0});
  for (int v = 0; v < cuda::emulator::kVariants; ++v) all.push_back({{DeviceKind::cuda, 0}, active_isa(), v});
  const char* const wanted = std::getenv("QLORA_TEST_BODIES");
  for (const Body& b : all)
    if (wanted == nullptr || b.name().rfind(wanted, 0) == 0) out.push_back(b);
  return out;
}

// Puts a body in force for a scope: run_planned's.
class WithBody {
 public:
  explicit WithBody(const Body& b) : with_(b.isa), launches_(cuda::emulator::launches) {
    cuda::emulate({});
    body_ = b;
    device_under_test = b.device;
    cuda::emulator::variant = b.variant;
    if (b.variant == 0) seen_.clear();
    next_ = 0;
  }
  ~WithBody() {
    if (body_.device.kind == DeviceKind::cuda) {
      EXPECT_GT(cuda::emulator::launches, launches_) << "no kernel ran";
    }
    device_under_test = {};
  }
  WithBody(const WithBody&) = delete;

  // What came out, in the same order in every variant.
  static void expect_repeats(std::string_view bytes) {
    if (device_under_test.kind != DeviceKind::cuda) return;
    const size_t hash = std::hash<std::string_view>()(bytes);
    if (body_.variant == 0)
      seen_.push_back(hash);
    else
      EXPECT_TRUE(next_ < seen_.size() && seen_[next_++] == hash) << "other bits than in variant 0";
  }

 private:
  WithIsa with_;
  int64_t launches_;
  static inline Body body_;
  static inline std::vector<size_t> seen_;
  static inline size_t next_ = 0;
};

// Nothing is written beside the tensor, and its bits are the same in every variant of a body.
inline void expect_clean(const Tensor& t) {
  EXPECT_TRUE(t.gaps_intact());
  WithBody::expect_repeats(t.bytes());
}
template <class T>
void expect_repeats(const std::vector<T>& v) {
  WithBody::expect_repeats({reinterpret_cast<const char*>(v.data()), v.size() * sizeof(T)});
}

// f() on every body.
template <class F>
void for_each_body(const F& f) {
  for (const Body& b : bodies()) {
    SCOPED_TRACE(b.name());
    const WithBody with(b);
    f();
  }
}

}  // namespace qlora::testing
