#include "kernels/gated_act/gated_act.h"

#include "tests/support/bench.h"
#include "tests/support/tensor.h"

namespace qlora {
namespace {

using testing::Tensor;

void gated_act(benchmark::State& state, DType type, bool backward) {
  const int64_t rows = 2048, cols = state.range(0);
  const Tensor gate = Tensor::normal(type, rows, cols, 1, 1, 0),
               up = Tensor::normal(type, rows, cols, 2, 1, 0);
  Tensor a(type, rows, cols, 0), b(type, rows, cols, 0);
  testing::measure_bytes(state, [&](Exec& e) {
    if (backward)
      gated_act_backward(e, Activation::silu, up, gate, up, a.mat(), b.mat());
    else
      gated_act_forward(e, Activation::silu, gate, up, a.mat());
  });
}
BENCHMARK_CAPTURE(gated_act, forward_fp32, DType::f32, false)->Arg(1536)->Apply(testing::measured);
BENCHMARK_CAPTURE(gated_act, forward_bf16, DType::bf16, false)->Arg(1536)->Apply(testing::measured);
BENCHMARK_CAPTURE(gated_act, backward_fp32, DType::f32, true)->Arg(1536)->Apply(testing::measured);
BENCHMARK_CAPTURE(gated_act, backward_bf16, DType::bf16, true)->Arg(1536)->Apply(testing::measured);

}  // namespace
}  // namespace qlora
