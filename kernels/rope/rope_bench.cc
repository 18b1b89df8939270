#include "kernels/rope/rope.h"

#include "tests/support/bench.h"
#include "tests/support/tensor.h"

namespace qlora {
namespace {

// Queries of SmolLM2-135M and of a model of 8 billion, in place.
void rope_heads(benchmark::State& state, DType type) {
  const int64_t rows = 2048, heads = state.range(0), dim = state.range(1);
  testing::Tensor x = testing::Tensor::normal(type, rows, heads * dim, 1, 1, 0);
  const auto angles = static_cast<size_t>(rows * dim / 2);
  const std::vector<float> cos(angles, .8f), sin(angles, .6f);
  const RopeTable table{cos.data(), sin.data(), rows, static_cast<int>(dim)};
  std::vector<int32_t> positions;
  for (int64_t i = 0; i < rows; ++i) positions.push_back(static_cast<int32_t>(i));
  testing::measure_bytes(state, [&](Exec& e) {
    rope(e, table, positions, static_cast<int>(heads), static_cast<int>(dim), false, x.mat());
  });
}
BENCHMARK_CAPTURE(rope_heads, fp32, DType::f32)->Args({9, 64})->Args({32, 128})->Apply(testing::measured);
BENCHMARK_CAPTURE(rope_heads, bf16, DType::bf16)->Args({9, 64})->Args({32, 128})->Apply(testing::measured);

}  // namespace
}  // namespace qlora
