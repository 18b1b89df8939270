#include "kernels/rows/rows.h"

#include "tests/support/bench.h"
#include "tests/support/tensor.h"

namespace qlora {
namespace {

using testing::Tensor;

void gather(benchmark::State& state, DType type) {
  const int64_t rows = 2048, cols = state.range(0);
  const Tensor x = Tensor::normal(type, rows, cols, 1, 1, 0);
  Tensor y(type, rows, cols, 0);
  std::vector<int32_t> index;
  for (int64_t i = 0; i < rows; ++i) index.push_back(static_cast<int32_t>(i * 1021 % rows));
  testing::measure_bytes(state, [&](Exec& e) { gather_rows(e, x, index, y.mat()); });
}
void cast(benchmark::State& state, DType from, DType to) {
  const int64_t rows = 2048, cols = state.range(0);
  const Tensor x = Tensor::normal(from, rows, cols, 1, 1, 0);
  Tensor y(to, rows, cols, 0);
  testing::measure_bytes(state, [&](Exec& e) { cast_rows(e, x, y.mat()); });
}
BENCHMARK_CAPTURE(gather, fp32, DType::f32)->Arg(576)->Apply(testing::measured);
BENCHMARK_CAPTURE(gather, bf16, DType::bf16)->Arg(576)->Apply(testing::measured);
BENCHMARK_CAPTURE(cast, fp32_bf16, DType::f32, DType::bf16)->Arg(576)->Apply(testing::measured);
BENCHMARK_CAPTURE(cast, bf16_fp32, DType::bf16, DType::f32)->Arg(576)->Apply(testing::measured);

}  // namespace
}  // namespace qlora
