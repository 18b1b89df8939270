// A step of generation's products, as a share of what the same threads read when they do nothing else: stored
// bytes, of weights that no cache holds, as a model's are that is larger than the caches.
#include "kernels/gemm/gemm_few.h"

#include <cmath>

#include "kernels/gemm/gemm_test_data.h"
#include "tests/support/bench.h"

namespace qlora {
namespace {

// A weight's codes again and again, until they fill more than the caches; each pass takes the next.
class ManyWeights {
 public:
  explicit ManyWeights(const WeightView& w)
      : w_(w), bytes_(static_cast<size_t>(std::ceil(w.code_bytes() / 64)) * 64) {
    const Arena& codes = memory();
    count_ = codes.bytes() / bytes_;
    for (size_t i = 0; i < count_; ++i)
      std::memcpy(codes.data() + i * bytes_, w.data, static_cast<size_t>(w.code_bytes()));
  }
  const WeightView& next() {
    w_.data = memory().data() + at_++ % count_ * bytes_;
    return w_;
  }

 private:
  // One for all benchmarks: making a gigabyte resident takes longer than each of them.
  static const Arena& memory() {
    static const Arena arena = [] {
      Arena a(testing::beyond_caches());
      a.touch();
      return a;
    }();
    return arena;
  }
  WeightView w_;
  size_t bytes_, count_, at_ = 0;
};

void few(benchmark::State& state, Format format) {
  const int64_t M = state.range(0), N = 16384, K = state.range(1);
  const TestWeight w(format, N, K, {.doubly = true});
  ManyWeights weights(w.view());
  const TestMatrix x(DType::bf16, M, K, 0);
  TestMatrix y(DType::bf16, M, N, 0);
  testing::measure_read(state, w.view().stored_bytes(), [&](Exec& e) {
    const GemmTerm term{x.view(), weights.next()};
    gemm_few_nt(e, "product", {&term, 1}, {}, y.view());
  });
}
void shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"M", "K"})->Unit(benchmark::kMillisecond)->Apply(testing::measured);
  for (const int64_t M : {1, 4}) b->Args({M, 1536});
  b->Args({1, 576});
}
BENCHMARK_CAPTURE(few, nf4, Format::nf4)->Apply(shapes);
BENCHMARK_CAPTURE(few, q4_0, Format::q4_0)->Apply(shapes);
BENCHMARK_CAPTURE(few, q4_1, Format::q4_1)->Apply(shapes);
BENCHMARK_CAPTURE(few, q8_0, Format::q8_0)->Apply(shapes);
BENCHMARK_CAPTURE(few, int8, Format::int8)->Apply(shapes);
BENCHMARK_CAPTURE(few, bf16, Format::bf16)->Apply(shapes);

}  // namespace
}  // namespace qlora
