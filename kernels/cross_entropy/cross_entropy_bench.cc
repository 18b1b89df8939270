#include "kernels/cross_entropy/cross_entropy.h"

#include "tests/support/bench.h"
#include "tests/support/tensor.h"

// A chunk of rows over SmolLM2's vocabulary, loss and gradient in one call.
namespace qlora {
namespace {

void cross_entropy_rows(benchmark::State& state) {
  const int64_t rows = state.range(0), vocab = 49152;
  testing::Tensor logits = testing::Tensor::normal(DType::f32, rows, vocab, 1, 1, 0);
  const std::vector<int32_t> labels(rows, 7);
  std::vector<float> loss(rows);
  std::vector<uint8_t> hit(rows);
  testing::measure_bytes(
      state, [&](Exec& e) { cross_entropy(e, logits.mat(), labels, 0, logits.mat(), 1e-3f, loss, hit); });
}
BENCHMARK(cross_entropy_rows)
    ->ArgName("rows")
    ->Arg(8)
    ->Arg(128)
    ->Unit(benchmark::kMillisecond)
    ->Apply(testing::measured);

}  // namespace
}  // namespace qlora
