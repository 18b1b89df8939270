#include <benchmark/benchmark.h>
#include <time.h>

#include <algorithm>
#include <vector>

#include "kernels/common/rows.h"
#include "kernels/gemm/gemm.h"
#include "kernels/gemm/gemm_test_data.h"

#define QLORA_BODY "kernels/gemm/gemm_bench.inl"
#include "kernels/common/for_each_isa.h"
#define QLORA_AMX_BODY "kernels/gemm/gemm_bench_amx.inl"
#include "kernels/common/for_amx.h"

// Every product at the shapes that matter, as a share of what the same cores' registers alone make in the
// same minute, tiles where the product runs on them: both are best times, so that a busy machine shows in
// neither.

namespace qlora {
namespace {

// Of this thread alone where it works alone, so that other programs cost nothing; else by the clock on the
// wall.
double now(int threads) {
  timespec t;
  clock_gettime(threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

template <class F>
double seconds(int threads, F&& f) {
  const double begin = now(threads);
  f();
  return now(threads) - begin;
}

template <class F>
double flops_of(int threads, double each, F&& task) {
  const Exec e({DeviceKind::cpu, 0}, threads, nullptr);
  double best = 1e9;
  for (int i = 0; i < 10; ++i)
    best = std::min(best, seconds(threads, [&] { e.parallel(threads, [&](int64_t, int) { task(); }); }));
  return threads * each / best;
}

double peak_flops(int threads, DType dtype) {
  constexpr int64_t kRounds = 50000;
#if defined(__x86_64__)
  if (active_isa() == Isa::amx && dtype == DType::bf16)
    return flops_of(threads, kRounds * amx::kTileFlops, [] { amx::tile_chains(kRounds); });
#endif
  const auto chains = QLORA_PICK(fma_chains);
  return flops_of(threads, kRounds * QLORA_DISPATCH(flops_of_round), [&] {
    float out[12 * 16] = {0.999f, 1e-3f};
    chains(kRounds, out);
    benchmark::DoNotOptimize(out);
  });
}

template <class F>
void measure(benchmark::State& state, int threads, DType dtype, double flops, F&& op) {
  Trace trace("benchmark");
  {
    Exec rehearsal = Exec::rehearsal(threads);
    Phase phase(rehearsal, trace);
    op(rehearsal);
  }
  trace.lay_out();
  Arena arena(trace.bytes);
  arena.touch();
  Exec e({DeviceKind::cpu, 0}, threads, arena.data());
  double peak = peak_flops(threads, dtype), best = 1e9;
  for (auto _ : state) {
    Phase phase(e, trace);
    best = std::min(best, seconds(threads, [&] { op(e); }));
  }
  peak = std::max(peak, peak_flops(threads, dtype));
  state.counters["GFLOP/s"] = flops / best * 1e-9;
  state.counters["peak%"] = 100 * flops / best / peak;
  state.SetLabel(name_of(active_isa()));
}

void product(benchmark::State& state, bool nt, Format format, DType dtype) {
  const int64_t M = state.range(0), N = state.range(1), K = state.range(2);
  const int threads = static_cast<int>(state.range(3));
  const TestWeight w(format, nt ? N : K, nt ? K : N, {});
  const TestMatrix x(dtype, M, K, 0);
  TestMatrix y(dtype, M, N, 0);
  const GemmTerm term{x.view(), w.view()};
  measure(state, threads, dtype, 2.0 * static_cast<double>(M * N * K), [&](Exec& e) {
    (nt ? gemm_nt : gemm_nn)(e, "product", {&term, 1}, {}, y.view());
  });
}

void gradient(benchmark::State& state, DType dtype) {
  const int64_t M = state.range(0), P = state.range(1), Q = state.range(2);
  const int threads = static_cast<int>(state.range(3));
  const TestMatrix a(dtype, M, P, 0), b(dtype, M, Q, 0);
  TestMatrix out(DType::f32, P, Q, 0);
  measure(state, threads, dtype, 2.0 * static_cast<double>(M * P * Q),
          [&](Exec& e) { gemm_tn(e, "gradient", a.view(), b.view(), 1, out.view()); });
}

// SmolLM2-135M's linears and those of a model of 8 billion, forward [M, N, K] and backward.
void linears(benchmark::internal::Benchmark* b) {
  b->ArgNames({"M", "N", "K", "threads"})->Unit(benchmark::kMillisecond)->UseRealTime();
  for (const int threads : {1, 2})
    for (const int64_t M : {1, 64, 512, 2048}) {
      b->Args({M, 576, 576, threads})->Args({M, 1536, 576, threads})->Args({M, 576, 1536, threads});
      if (M <= 512) b->Args({M, 4096, 4096, threads});
    }
}
void lm_head(benchmark::internal::Benchmark* b) {
  b->ArgNames({"M", "N", "K", "threads"})->Unit(benchmark::kMillisecond)->UseRealTime();
}
void narrow(benchmark::internal::Benchmark* b) {
  b->ArgNames({"M", "N", "K", "threads"})->Unit(benchmark::kMillisecond)->UseRealTime();
  for (const int threads : {1, 2})
    for (const int64_t r : {16, 48}) b->Args({2048, r, 576, threads})->Args({2048, r, 1536, threads});
}
void gradients(benchmark::internal::Benchmark* b) {
  b->ArgNames({"M", "P", "Q", "threads"})->Unit(benchmark::kMillisecond)->UseRealTime();
  for (const int threads : {1, 2})
    for (const int64_t r : {16, 48}) b->Args({2048, r, 576, threads})->Args({2048, 1536, r, threads});
}

BENCHMARK_CAPTURE(product, nt_nf4_bf16, true, Format::nf4, DType::bf16)->Apply(linears);
BENCHMARK_CAPTURE(product, nn_nf4_bf16, false, Format::nf4, DType::bf16)->Apply(linears);
BENCHMARK_CAPTURE(product, nt_nf4_f32, true, Format::nf4, DType::f32)->Apply(linears);
BENCHMARK_CAPTURE(product, nn_nf4_f32, false, Format::nf4, DType::f32)->Apply(linears);
BENCHMARK_CAPTURE(product, nt_bf16_lm_head, true, Format::bf16, DType::bf16)
    ->Apply(lm_head)
    ->Args({256, 49152, 576, 1})
    ->Args({256, 49152, 576, 2});
BENCHMARK_CAPTURE(product, nn_bf16_lm_head, false, Format::bf16, DType::bf16)
    ->Apply(lm_head)
    ->Args({256, 576, 49152, 1})
    ->Args({256, 576, 49152, 2});
BENCHMARK_CAPTURE(product, nt_lora_a, true, Format::f32, DType::bf16)->Apply(narrow);
BENCHMARK_CAPTURE(product, nn_lora_b, false, Format::f32, DType::bf16)->Apply(narrow);
BENCHMARK_CAPTURE(gradient, tn_bf16, DType::bf16)->Apply(gradients);
BENCHMARK_CAPTURE(gradient, tn_f32, DType::f32)->Apply(gradients);

}  // namespace
}  // namespace qlora
