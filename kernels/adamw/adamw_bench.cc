#include "kernels/adamw/adamw.h"

#include "tests/support/bench.h"

namespace qlora {
namespace {

// As many parameters as SmolLM2's adapters of rank 16 have.
void adamw_step(benchmark::State& state) {
  const auto n = static_cast<size_t>(state.range(0));
  std::vector<float> p(n, .1f), g(n, .01f), m(n), v(n);
  testing::measure_bytes(state, [&](Exec& e) { adamw(e, {1e-3, .9, .999, 1e-8, .01, 1, 1}, p, g, m, v); });
}
BENCHMARK(adamw_step)->Arg(1 << 16)->Arg(4884480)->Apply(testing::measured);

}  // namespace
}  // namespace qlora
