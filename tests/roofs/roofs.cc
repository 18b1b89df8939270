#include "tests/roofs/roofs.h"

#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>

#include "kernels/common/rows.h"
#include "memory/exec.h"
#include "memory/process.h"
#include "tests/roofs/least_seconds.h"

#define QLORA_BODY "tests/roofs/roofs.inl"
#include "kernels/common/for_each_isa.h"
#define QLORA_AMX_BODY "tests/roofs/roofs_amx.inl"
#include "kernels/common/for_amx.h"

#if defined(__x86_64__)
#pragma GCC push_options
#pragma GCC target("avx512bf16,avx512f,avx512bw,avx512dq,avx512vl")
namespace qlora::dots {
// As roofs.inl's chains.
inline void chains(int64_t rounds, float* out) {
  __m512 sum[12];
#pragma GCC unroll 12
  for (int i = 0; i < 12; ++i) sum[i] = _mm512_set1_ps(static_cast<float>(i));
  __m512i a = _mm512_set1_epi16(0x3f00), b = _mm512_set1_epi16(0x3e80);
  for (int64_t r = 0; r < rounds; ++r) {
    asm volatile("" : "+v"(a), "+v"(b));  // else the product is known
#pragma GCC unroll 12
    for (int i = 0; i < 12; ++i)
      sum[i] = _mm512_dpbf16_ps(sum[i], reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }
#pragma GCC unroll 12
  for (int i = 0; i < 12; ++i) _mm512_storeu_ps(out + i * 16, sum[i]);
}
inline constexpr double kRoundFlops = 12. * 2 * 32;
}  // namespace qlora::dots
#pragma GCC pop_options
#endif

namespace qlora::testing {
namespace {

// A thread's share of one run, and what it does.
struct Chains {
  void (*run)(int64_t rounds, float* out);
  double flops;  // of a round
};

#if defined(__x86_64__)
void tiles(int64_t rounds, float*) { amx::tile_chains(rounds); }
#endif

Chains chains_of(Arithmetic a) {
#if defined(__x86_64__)
  if (a == Arithmetic::tiles) return {tiles, amx::kTileFlops};
  if (a == Arithmetic::dots) return {dots::chains, dots::kRoundFlops};
  if (a == Arithmetic::fma512) return {avx512::fma_chains, avx512::kRoundFlops};
  if (a == Arithmetic::fma256) return {avx2::fma_chains, avx2::kRoundFlops};
#endif
  return {scalar::fma_chains, scalar::kRoundFlops};
}

}  // namespace

const char* name_of(Arithmetic a) {
  switch (a) {
    case Arithmetic::tiles:
      return "bf16 tiles";
    case Arithmetic::dots:
      return "bf16 dot products";
    case Arithmetic::fma512:
      return "fp32, 16 lanes";
    case Arithmetic::fma256:
      return "fp32, 8 lanes";
    case Arithmetic::scalar:
      return "fp32, plain";
  }
  return "?";
}

bool supported(Arithmetic a) {
#if defined(__x86_64__)
  if (a == Arithmetic::tiles) return supported(Isa::amx);
  if (a == Arithmetic::dots) return supported(Isa::avx512bf16);
  if (a == Arithmetic::fma512) return supported(Isa::avx512);
  if (a == Arithmetic::fma256) return supported(Isa::avx2);
#endif
  return a == Arithmetic::scalar;
}

Arithmetic arithmetic_of(Isa isa, DType operands) {
  switch (isa) {
    case Isa::scalar:
      return Arithmetic::scalar;
    case Isa::avx2:
      return Arithmetic::fma256;
    case Isa::avx512:
      return Arithmetic::fma512;
    case Isa::avx512bf16:
      return operands == DType::bf16 ? Arithmetic::dots : Arithmetic::fma512;
    case Isa::amx:
      return operands == DType::bf16 ? Arithmetic::tiles : Arithmetic::fma512;
  }
  return Arithmetic::scalar;
}

double now(int threads) {
  timespec t;
  clock_gettime(threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

double flops_per_second(Arithmetic a, int threads) {
  check(supported(a), "this CPU has no ", name_of(a));
  const Exec e({DeviceKind::cpu, 0}, threads, nullptr);
  const Chains chains = chains_of(a);
  int64_t rounds = 1000;
  const auto run = [&](int64_t) {
    const volatile float known = 0.999f;
    float out[12 * 16] = {known, 1e-3f};
    chains.run(rounds, out);
    [[maybe_unused]] const volatile float used = out[0];
  };
  while (least_seconds(e, 1, run) < kRunSeconds) rounds *= 2;
  const double seconds = least_seconds(e, kRuns, run);
  return threads * static_cast<double>(rounds) * chains.flops / seconds;
}

Arithmetic fastest_arithmetic() {
  static const Arithmetic fastest = [] {
    Arithmetic best = Arithmetic::scalar;
    double most = 0;
    for (const Arithmetic a : kArithmetics) {
      const double flops = supported(a) ? flops_per_second(a, 1) : 0;
      if (flops > most) best = a, most = flops;
    }
    return best;
  }();
  return fastest;
}

double peak_flops(int threads) { return flops_per_second(fastest_arithmetic(), threads); }

size_t beyond_caches() {
  constexpr size_t kLeast = size_t{256} << 20, kMost = size_t{1} << 30, kStep = size_t{1} << 20;
  const long last = sysconf(_SC_LEVEL3_CACHE_SIZE);
  const size_t twice = last > 0 ? 2 * static_cast<size_t>(last) : kLeast;
  return std::min(std::clamp(twice, kLeast, kMost), available_bytes() / 4) / kStep * kStep;
}

double read_bandwidth(int threads) {
  static std::map<int, double> measured;
  double& rate = measured[threads];
  if (rate > 0) return rate;
  const Exec e({DeviceKind::cpu, 0}, threads, nullptr);
  Arena arena(beyond_caches());
  arena.touch();
  const auto* const floats = reinterpret_cast<const float*>(arena.data());
  const int64_t each = static_cast<int64_t>(arena.bytes() / sizeof(float)) / threads / 256 * 256;
  const auto read = QLORA_PICK(read_sum);
  const double seconds = least_seconds(e, kRuns, [&](int64_t thread) {
    [[maybe_unused]] const volatile float used = read(floats + thread * each, each);
  });
  return rate = static_cast<double>(threads * each) * sizeof(float) / seconds;
}

double move_seconds(double bytes, int threads) {
  const Exec e({DeviceKind::cpu, 0}, threads, nullptr);
  const int64_t each = static_cast<int64_t>(bytes / 2 / sizeof(float)) / threads / 128 * 128;
  std::vector<float> from(static_cast<size_t>(threads * each), 1.f), to(from.size());
  const auto add_one = QLORA_PICK(update);
  const double copied = least_seconds(e, 2 * kRuns, [&](int64_t thread) {
    std::memcpy(to.data() + thread * each, from.data() + thread * each,
                static_cast<size_t>(each) * sizeof(float));
    asm volatile("" : : "r"(to.data()) : "memory");
  });
  const double updated =
      least_seconds(e, 2 * kRuns, [&](int64_t thread) { add_one(from.data() + thread * each, each); });
  return std::min(copied, updated) * bytes / (2. * static_cast<double>(from.size()) * sizeof(float));
}

}  // namespace qlora::testing
