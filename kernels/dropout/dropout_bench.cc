#include "kernels/dropout/dropout.h"

#include "tests/support/bench.h"
#include "tests/support/tensor.h"

namespace qlora {
namespace {

void dropout(benchmark::State& state, DType type) {
  const int64_t rows = 2048, cols = state.range(0);
  const testing::Tensor x = testing::Tensor::normal(type, rows, cols, 1, 1, 0);
  testing::Tensor y(type, rows, cols, 0);
  std::vector<uint64_t> tokens;
  for (int64_t i = 0; i < rows; ++i) tokens.push_back(i);
  testing::measure_bytes(state, [&](Exec& e) { dropout_forward(e, {1, 2, 3, .05f}, tokens, x, y.mat()); });
}
BENCHMARK_CAPTURE(dropout, fp32, DType::f32)->Arg(576)->Arg(4096)->Apply(testing::measured);
BENCHMARK_CAPTURE(dropout, bf16, DType::bf16)->Arg(576)->Arg(4096)->Apply(testing::measured);

}  // namespace
}  // namespace qlora
