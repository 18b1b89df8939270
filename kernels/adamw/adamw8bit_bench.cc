#include "kernels/adamw/adamw8bit.h"
#include "tests/support/bench.h"

namespace qlora {
namespace {

// As many parameters as SmolLM2's adapters of rank 16 have.
void adamw8bit_step(benchmark::State& state) {
  const int64_t n = state.range(0);
  const auto count = static_cast<size_t>(n), blocks = count / kBlock8;
  std::vector<float> p(count), g(count), absmax_m(blocks, 1e-3f), absmax_v(blocks, 1e-6f);
  std::vector<uint8_t> m(count), v(count);
  for (size_t i = 0; i < count; ++i) {
    g[i] = 1e-3f * static_cast<float>(static_cast<int>(i * 2654435761u % 2001) - 1000);
    m[i] = v[i] = static_cast<uint8_t>(i * 40503u >> 3);
  }
  std::vector<MomentRun> runs;
  for (int64_t i = 0; i < n; i += kMaxMomentRun)
    runs.push_back({true, i, std::min(kMaxMomentRun, n - i), i, i / kBlock8});
  const Moments8 moments{runs, m, v, absmax_m, absmax_v, {}, {}};
  testing::measure_bytes(state, [&](Exec& e) {
    adamw8bit(e, {1e-3, .9, .999, 1e-8, .01, 1, 1}, p, g, moments);
  });
}
BENCHMARK(adamw8bit_step)->Arg(1 << 16)->Arg(4884480)->Apply(testing::measured);

}  // namespace
}  // namespace qlora
