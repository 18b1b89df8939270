#include "tests/roofs/loops.h"

#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#include "kernels/common/rows.h"
#include "memory/exec.h"
#include "tests/roofs/least_seconds.h"

namespace qlora {
// Rows, and steps of 32 terms, of x in tiles: what the second cache holds, and what the nearest does. Rows of
// vectors whose terms the nearest cache holds.
inline constexpr int64_t kFarRows = 512, kFarSteps = 18, kNearSteps = 10, kNearVectorRows = 24;
}  // namespace qlora

#define QLORA_BODY "tests/roofs/loops.inl"
#include "kernels/common/for_each_isa.h"
#define QLORA_AMX_BODY "tests/roofs/loops_amx.inl"
#include "kernels/common/for_amx.h"

#if defined(__x86_64__)
#pragma GCC push_options
#pragma GCC target("avx512f")
namespace qlora::stores {
inline void past_caches(float* to, int64_t count) {
  const __m512 zeros = _mm512_setzero_ps();
  for (int64_t i = 0; i < count; i += 16) _mm512_stream_ps(to + i, zeros);
  _mm_sfence();
}
}  // namespace qlora::stores
#pragma GCC pop_options
#endif

namespace qlora::testing {
namespace {

constexpr int64_t kRepeats = 20000;

// One thread's operands: x up to the second cache's size, a panel that the nearest one holds, room for sums.
struct Values {
  alignas(64) float x[kFarRows * (kFarSteps + 1) * 16];
  alignas(64) float panel[192 * 48], out[1024];
};

// Of either sign and a size in [1, 2), as fp32 and as pairs of bf16.
void fill(float* at, size_t count) {
  uint32_t state = 1;
  for (size_t i = 0; i < count; ++i) {
    state = state * 1664525u + 1013904223u;
    const uint32_t bits = 0x3f803f80u | (state & 0x807f0000u) | (state >> 8 & 0x807fu);
    std::memcpy(at + i, &bits, sizeof bits);
  }
}

// A run of the loop by one thread, and its operations.
struct Loop {
  std::function<void(Values&)> run;
  double flops;
};

#if defined(__x86_64__)
Loop tile_loop(Operands operands) {
  using Bytes = const char*;
  if (operands == Operands::registers)
    return {[](Values& v) { amx::loop_tile_registers(reinterpret_cast<Bytes>(v.x), kRepeats, v.out); },
            kRepeats * amx::kLoopTileFlops};
  if (operands == Operands::nearest)
    return {[](Values& v) {
              amx::loop_near_tiles(reinterpret_cast<Bytes>(v.x), reinterpret_cast<Bytes>(v.panel), kRepeats,
                                   v.out);
            },
            kRepeats * kNearSteps * amx::kLoopTileFlops};
  return {[](Values& v) {
            amx::loop_tiles(reinterpret_cast<Bytes>(v.x), reinterpret_cast<Bytes>(v.panel), v.out);
          },
          amx::kLoopTilesFlops};
}

#define QLORA_VECTOR_LOOP(isa, operands)                                                                   \
  const int64_t rows = (operands) == Operands::second ? kFarRows : kNearVectorRows;                        \
  if ((operands) == Operands::registers)                                                                   \
    return {[](Values& v) { isa::loop_registers(v.x, kRepeats, v.out); }, kRepeats * isa::kRegisterFlops}; \
  return {                                                                                                 \
    [rows](Values& v) { isa::loop_rows(v.x, rows, v.panel, v.out); },                                      \
        static_cast<double>(rows / isa::kLoopRows * isa::kLoopTerms) * isa::kLoopFlops                     \
  }

Loop fma512_loop(Operands operands) { QLORA_VECTOR_LOOP(avx512, operands); }
Loop fma256_loop(Operands operands) { QLORA_VECTOR_LOOP(avx2, operands); }
#endif

Loop loop_of([[maybe_unused]] Arithmetic a, [[maybe_unused]] Operands operands) {
#if defined(__x86_64__)
  if (a == Arithmetic::tiles) return tile_loop(operands);
  if (a == Arithmetic::fma512) return fma512_loop(operands);
  if (a == Arithmetic::fma256) return fma256_loop(operands);
#endif
  fail(Category::internal, "no loop of ", name_of(a));
}

}  // namespace

const char* name_of(Operands o) {
  switch (o) {
    case Operands::registers:
      return "registers";
    case Operands::nearest:
      return "nearest cache";
    case Operands::second:
      return "second cache";
  }
  return "?";
}

bool has_loop(Arithmetic a) {
  return supported(a) && (a == Arithmetic::tiles || a == Arithmetic::fma512 || a == Arithmetic::fma256);
}

double loop_flops(Arithmetic a, Operands operands, int threads) {
  const Exec e({DeviceKind::cpu, 0}, threads, nullptr);
  std::vector<std::unique_ptr<Values>> values;
  for (int i = 0; i < threads; ++i) {
    values.push_back(std::make_unique<Values>());
    fill(values.back()->x, std::size(values.back()->x));
    fill(values.back()->panel, std::size(values.back()->panel));
  }
  const Loop loop = loop_of(a, operands);
  int64_t times = 1;
  const auto run = [&](int64_t thread) {
    for (int64_t i = 0; i < times; ++i) loop.run(*values[static_cast<size_t>(thread)]);
  };
  while (least_seconds(e, 1, run) < kRunSeconds) times *= 2;
  return threads * static_cast<double>(times) * loop.flops / least_seconds(e, kRuns, run);
}

double write_bandwidth(int threads) {
#if defined(__x86_64__)
  if (supported(Isa::avx512)) {
    const Exec e({DeviceKind::cpu, 0}, threads, nullptr);
    Arena arena(beyond_caches());
    arena.touch();
    auto* const floats = reinterpret_cast<float*>(arena.data());
    const int64_t each = static_cast<int64_t>(arena.bytes() / sizeof(float)) / threads / 16 * 16;
    const double seconds =
        least_seconds(e, kRuns, [&](int64_t thread) { stores::past_caches(floats + thread * each, each); });
    return static_cast<double>(threads * each) * sizeof(float) / seconds;
  }
#endif
  static_cast<void>(threads);
  return 0;
}

}  // namespace qlora::testing
