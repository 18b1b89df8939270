// Tokens a second against memory: what the planner makes of six budgets, beside every uniform choice. One
// thread by its own clock, so that other programs' turns do not count. QLORA_BENCH_MODEL names the model;
// --benchmark_enable_random_interleaving=true --benchmark_repetitions=3 lets the variants take turns.
#include <benchmark/benchmark.h>

#include <cstdlib>

#include "memory/random.h"
#include "tests/support/bench.h"
#include "train/op_rates.h"
#include "train/reach.h"

namespace qlora {
namespace {

constexpr int64_t kRows = 2, kLength = 512;
constexpr int kBudgets = 6;

struct Bench {
  std::shared_ptr<const Model> model;
  AdapterLayout layout;
  EngineOptions options;
  size_t least = 0, most = 0;  // bytes: everything computed again, everything stored
  Batch batch;

  explicit Bench(const char* path) {
    const std::shared_ptr<const Checkpoint> checkpoint = Checkpoint::open(path);
    BaseSpec spec;
    if (!checkpoint->quantization()) spec.quantize = QuantizedSpec{};
    model = Model::load(checkpoint, spec, 1);
    std::vector<LoraChoice> choices;
    for (int b = 0; b < model->block_count(); ++b)
      for (int k = 0; k < kLinears; ++k) choices.push_back({b, static_cast<LinearKind>(k), 16, 2});
    layout = AdapterLayout(model->desc(), choices);
    options.train = full_rows(kRows, kLength);
    options.batch_rows = kRows;
    options.rates = measure_op_rates(1);
    options.process_bytes = size_t{20} << 20;
    options.memory_budget = size_t{1} << 44;
    options.checkpointing = Checkpointing::none;
    most = Engine(model, layout, options).plan().total_bytes;
    options.checkpointing = Checkpointing::all;
    least = Engine(model, layout, options).plan().total_bytes;
    options.checkpointing = Checkpointing::automatic;
    fill_batch();
  }

  void fill_batch() {
    batch.cu_seqlens = {0};
    for (int64_t t = 0; t < kRows * kLength; ++t) {
      const int64_t place = t % kLength;
      batch.ids.push_back(static_cast<int32_t>(random_bits(1, static_cast<uint64_t>(t)) %
                                               static_cast<uint64_t>(model->desc().vocab)));
      batch.positions.push_back(static_cast<int32_t>(place));
      batch.places.push_back(static_cast<uint64_t>(t));
      batch.targets.push_back(place + 1 < kLength ? batch.ids.back() : -1);
      if (place + 1 < kLength) batch.loss_rows.push_back(static_cast<int32_t>(t));
      if (place + 1 == kLength) batch.cu_seqlens.push_back(static_cast<int32_t>(t + 1));
    }
  }
};

const Bench* bench() {
  static const char* const path = std::getenv("QLORA_BENCH_MODEL");
  static const std::unique_ptr<Bench> made = path == nullptr ? nullptr : std::make_unique<Bench>(path);
  return made.get();
}

void measure(benchmark::State& state, const EngineOptions& options) {
  const Bench& b = *bench();
  Engine engine(b.model, b.layout, options);
  engine.reserve();
  engine.set_params([&](std::span<float> p) { b.layout.initialize(1, p); });
  double best = 1e9;
  for (auto _ : state) {
    const double began = testing::now(1);
    engine.train(b.batch, {}, 1e-3f);
    const double seconds = testing::now(1) - began;
    state.SetIterationTime(seconds);
    best = std::min(best, seconds);
  }
  state.counters["tok/s"] = static_cast<double>(b.batch.tokens()) / best;
  state.counters["MiB"] = static_cast<double>(engine.plan().total_bytes >> 20);
  state.counters["estimate%"] =
      100 * engine.plan().extra_seconds / (engine.plan().seconds - engine.plan().extra_seconds);
  state.SetLabel(engine.plan().choices());
}

// The planner's choice for a budget: 0 the least, kBudgets - 1 enough to store everything.
void BM_Budget(benchmark::State& state) {
  if (bench() == nullptr) return state.SkipWithError("QLORA_BENCH_MODEL is not set");
  EngineOptions o = bench()->options;
  o.memory_budget = bench()->least +
                    (bench()->most - bench()->least) * static_cast<size_t>(state.range(0)) / (kBudgets - 1);
  measure(state, o);
}
BENCHMARK(BM_Budget)
    ->DenseRange(0, kBudgets - 1)
    ->UseManualTime()
    ->Iterations(2)
    ->Unit(benchmark::kMillisecond);

// Every n-th layer computed again, whole.
void BM_EveryNth(benchmark::State& state) {
  if (bench() == nullptr) return state.SkipWithError("QLORA_BENCH_MODEL is not set");
  EngineOptions o = bench()->options;
  o.pinned.resize(static_cast<size_t>(bench()->model->block_count()));
  for (size_t i = 0; i < o.pinned.size(); i += static_cast<size_t>(state.range(0)))
    o.pinned[i] = SavePolicy::all(Keep::recompute);
  measure(state, o);
}
BENCHMARK(BM_EveryNth)->DenseRange(1, 3)->UseManualTime()->Iterations(2)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace qlora
