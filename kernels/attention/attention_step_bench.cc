#include "kernels/attention/attention_step.h"

#include "tests/support/bench.h"
#include "tests/support/tensor.h"

// A step of generation over a cache of so many keys, in SmolLM2-135M's heads. The cache of one block lies in
// a cache of the CPU or not, as in a conversation.
namespace qlora {
namespace {

using testing::Tensor;

void attention_step(benchmark::State& state, DType type) {
  const int64_t keys = state.range(0), dim = 64;
  const AttentionShape s{9, 3, static_cast<int>(dim), .125f, 0, 0};
  const Tensor q = Tensor::normal(type, 1, 9 * dim, 1, 1, 0),
               k = Tensor::normal(type, keys, 3 * dim, 2, 1, 0),
               v = Tensor::normal(type, keys, 3 * dim, 3, 1, 0);
  Tensor o(type, 1, 9 * dim, 0);
  testing::measure_bytes(state, [&](Exec& e) { attention_step(e, s, q, k, v, o.mat()); });
}
BENCHMARK_CAPTURE(attention_step, fp32, DType::f32)->Arg(512)->Arg(8192)->Apply(testing::measured);
BENCHMARK_CAPTURE(attention_step, bf16, DType::bf16)->Arg(512)->Arg(8192)->Apply(testing::measured);

}  // namespace
}  // namespace qlora
