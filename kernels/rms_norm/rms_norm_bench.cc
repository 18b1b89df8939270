#include "kernels/rms_norm/rms_norm.h"

#include "tests/support/bench.h"
#include "tests/support/tensor.h"

namespace qlora {
namespace {

using testing::Tensor;

void rms_norm(benchmark::State& state, DType type, bool backward) {
  const int64_t rows = 2048, cols = state.range(0);
  const Tensor x = Tensor::normal(type, rows, cols, 1, 1, 0);
  Tensor y(type, rows, cols, 0);
  const std::vector<float> w(cols, 1.f);
  std::vector<float> rstd(rows, 1.f);
  testing::measure_bytes(state, [&](Exec& e) {
    if (backward)
      rms_norm_backward(e, x, x, w.data(), 0, rstd.data(), y.mat());
    else
      rms_norm_forward(e, x, w.data(), 0, 1e-5f, y.mat(), rstd.data());
  });
}
BENCHMARK_CAPTURE(rms_norm, forward_fp32, DType::f32, false)->Arg(576)->Arg(4096)->Apply(testing::measured);
BENCHMARK_CAPTURE(rms_norm, forward_bf16, DType::bf16, false)->Arg(576)->Arg(4096)->Apply(testing::measured);
BENCHMARK_CAPTURE(rms_norm, backward_fp32, DType::f32, true)->Arg(576)->Arg(4096)->Apply(testing::measured);
BENCHMARK_CAPTURE(rms_norm, backward_bf16, DType::bf16, true)->Arg(576)->Arg(4096)->Apply(testing::measured);

}  // namespace
}  // namespace qlora
