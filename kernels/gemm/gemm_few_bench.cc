// A step of generation's products, as a share of what one thread reads when it does nothing else: stored
// bytes, of a weight that no cache holds.
#include "kernels/gemm/gemm_few.h"

#include <numeric>

#include "kernels/gemm/gemm_test_data.h"
#include "tests/support/bench.h"

namespace qlora {
namespace {

// Bytes a second of one thread that adds up what it reads.
double read_bandwidth() {
  const std::vector<uint64_t> words((size_t{128} << 20) / sizeof(uint64_t), 1);
  double best = 1e9;
  for (int i = 0; i < 10; ++i) {
    const double begin = testing::thread_seconds();
    benchmark::DoNotOptimize(std::accumulate(words.begin(), words.end(), uint64_t{0}));
    best = std::min(best, testing::thread_seconds() - begin);
  }
  return static_cast<double>(words.size() * sizeof(uint64_t)) / best;
}

void few(benchmark::State& state, Format format) {
  static const double bandwidth = read_bandwidth();
  const int64_t M = state.range(0), N = 65536, K = state.range(1);
  const TestWeight w(format, N, K, {.doubly = true});
  const TestMatrix x(DType::bf16, M, K, 0);
  TestMatrix y(DType::bf16, M, N, 0);
  const GemmTerm term{x.view(), w.view()};
  Trace trace("benchmark");
  const double best = testing::best_seconds(state, &trace, [&](Exec& e) {
    gemm_few_nt(e, "product", {&term, 1}, {}, y.view());
  });
  const double rate = w.view().stored_bytes() / best;
  state.counters["GB/s"] = rate * 1e-9;
  state.counters["of_read"] = rate / bandwidth;
  state.counters["Gweights/s"] = static_cast<double>(N * K) / best * 1e-9;
}
void shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"M", "K"})->Unit(benchmark::kMillisecond)->UseManualTime();
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
