#include <benchmark/benchmark.h>

#include "kernels/attention/attention.h"
#include "tests/support/bench.h"
#include "tests/support/tensor.h"

// Attention of one document, causal. FLOP are those that the mathematics needs: two products forward, five
// backward, over the pairs that are seen.
namespace qlora {
namespace {

using testing::Tensor;

void attention(benchmark::State& state, DType type, bool backward) {
  const int64_t length = state.range(0), dim = state.range(1), heads = 4;
  const AttentionShape s{4, 2, static_cast<int>(dim), .125f, 0, 0};
  const Tensor q = Tensor::normal(type, length, heads * dim, 1, 1, 0);
  const Tensor k = Tensor::normal(type, length, 2 * dim, 2, 1, 0),
               v = Tensor::normal(type, length, 2 * dim, 3, 1, 0);
  Tensor o(type, length, heads * dim, 0), dq = o, dk = k, dv = v, lse(DType::f32, heads, length);
  const std::vector<int32_t> bounds{0, static_cast<int32_t>(length)};
  const Segments docs{bounds, bounds};
  testing::run_planned(1, [&](Exec& e) { attention_forward(e, s, docs, q, k, v, o.mat(), lse.mat()); });
  testing::measure_flops(state, type, [&](Exec& e) {
    if (backward)
      attention_backward(e, s, docs, q, q, k, v, o, lse, dq.mat(), dk.mat(), dv.mat());
    else
      attention_forward(e, s, docs, q, k, v, o.mat(), lse.mat());
  });
}

void sizes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"length", "dim"})->Unit(benchmark::kMillisecond)->Apply(testing::measured);
  for (int64_t length : {200, 512, 1024, 2048, 4096, 8192}) b->Args({length, 64});
  b->Args({1024, 96})->Args({1024, 128})->Args({1024, 256});
}

BENCHMARK_CAPTURE(attention, forward_fp32, DType::f32, false)->Apply(sizes);
BENCHMARK_CAPTURE(attention, forward_bf16, DType::bf16, false)->Apply(sizes);
BENCHMARK_CAPTURE(attention, backward_fp32, DType::f32, true)->Apply(sizes);
BENCHMARK_CAPTURE(attention, backward_bf16, DType::bf16, true)->Apply(sizes);

}  // namespace
}  // namespace qlora
