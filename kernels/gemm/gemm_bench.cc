#include "kernels/gemm/gemm.h"

#include "kernels/gemm/gemm_test_data.h"
#include "tests/support/bench.h"

// Every product at the shapes that matter. x fits no nearer cache than a step's activations do.
namespace qlora {
namespace {

void product(benchmark::State& state, bool nt, Format format, DType dtype) {
  const int64_t M = state.range(0), N = state.range(1), K = state.range(2);
  const TestWeight w(format, nt ? N : K, nt ? K : N, {});
  const TestMatrix x(dtype, M, K, 0);
  TestMatrix y(dtype, M, N, 0);
  const GemmTerm term{x.view(), w.view()};
  testing::measure_flops(state, dtype, [&](Exec& e) {
    (nt ? gemm_nt : gemm_nn)(e, "product", {&term, 1}, {}, y.view(), nullptr);
  });
}

void gradient(benchmark::State& state, DType dtype) {
  const int64_t M = state.range(0), P = state.range(1), Q = state.range(2);
  const TestMatrix a(dtype, M, P, 0), b(dtype, M, Q, 0);
  TestMatrix out(DType::f32, P, Q, 0);
  testing::measure_flops(state, dtype,
                         [&](Exec& e) { gemm_tn(e, "gradient", a.view(), b.view(), 1, out.view()); });
}

void sizes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"M", "N", "K"})->Unit(benchmark::kMillisecond)->Apply(testing::measured);
}
// A block's linears as [out, in], N the columns of y: of SmolLM2-135M, of a Llama of 1.1 billion (TinyLlama),
// of one of 8.
struct Linear {
  int64_t out, in;
};
constexpr Linear kSmall[] = {{576, 576}, {192, 576}, {1536, 576}, {576, 1536}};
constexpr Linear kLarge[] = {{2048, 2048}, {256, 2048},  {5632, 2048},  {2048, 5632},
                             {4096, 4096}, {1024, 4096}, {14336, 4096}, {4096, 14336}};

template <bool kForward>
void linears(benchmark::internal::Benchmark* b) {
  sizes(b);
  const auto add = [b](int64_t M, Linear l) {
    kForward ? b->Args({M, l.out, l.in}) : b->Args({M, l.in, l.out});
  };
  for (const int64_t M : {64, 512, 2048})
    for (const Linear l : kSmall) add(M, l);
  for (const Linear l : kLarge) add(512, l);
}
void narrow(benchmark::internal::Benchmark* b) {
  sizes(b);
  for (const int64_t r : {16, 48}) b->Args({2048, r, 576})->Args({2048, r, 1536});
}
void gradients(benchmark::internal::Benchmark* b) {
  b->ArgNames({"M", "P", "Q"})->Unit(benchmark::kMillisecond)->Apply(testing::measured);
  for (const int64_t r : {16, 48}) b->Args({2048, r, 576})->Args({2048, 1536, r});
}

BENCHMARK_CAPTURE(product, nt_nf4_bf16, true, Format::nf4, DType::bf16)->Apply(linears<true>);
BENCHMARK_CAPTURE(product, nn_nf4_bf16, false, Format::nf4, DType::bf16)->Apply(linears<false>);
BENCHMARK_CAPTURE(product, nt_nf4_fp32, true, Format::nf4, DType::f32)->Apply(linears<true>);
BENCHMARK_CAPTURE(product, nn_nf4_fp32, false, Format::nf4, DType::f32)->Apply(linears<false>);
BENCHMARK_CAPTURE(product, nt_bf16_lm_head, true, Format::bf16, DType::bf16)
    ->Apply(sizes)
    ->Args({256, 49152, 576});
BENCHMARK_CAPTURE(product, nn_bf16_lm_head, false, Format::bf16, DType::bf16)
    ->Apply(sizes)
    ->Args({256, 576, 49152});
BENCHMARK_CAPTURE(product, nt_lora_a, true, Format::f32, DType::bf16)->Apply(narrow);
BENCHMARK_CAPTURE(product, nn_lora_b, false, Format::f32, DType::bf16)->Apply(narrow);
BENCHMARK_CAPTURE(gradient, tn_bf16, DType::bf16)->Apply(gradients);
BENCHMARK_CAPTURE(gradient, tn_fp32, DType::f32)->Apply(gradients);

}  // namespace
}  // namespace qlora
