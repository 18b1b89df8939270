// The loop over a tiny Llama: a run that was stopped and resumed is the run that was not, and what a step's
// loss, norm, rate and clipping mean.
#include "train/trainer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>

#include "memory/file.h"
#include "tests/support/golden.h"
#include "tests/support/temp_folder.h"
#include "tests/train/llama_fixture.h"

namespace qlora::testing {
namespace {

// Ends the run after `last` lines of metrics of this process.
struct Watcher : TrainerEvents {
  int64_t last = INT64_MAX, lines = 0;
  void stepped(const TrainMetrics&, int64_t, double) override { ++lines; }
  void evaluated(const EvalMetrics&) override {}
  void saved(const std::string&) override {}
  bool stop() override { return lines >= last; }
};

void write_params(const std::string& folder, std::span<const float> p) {
  write_file(folder + "/params", {reinterpret_cast<const char*>(p.data()), p.size_bytes()});
}
void read_params(const std::string& folder, std::span<float> p) {
  const MappedFile file(folder + "/params");
  ASSERT_EQ(file.text().size(), p.size_bytes());
  std::memcpy(p.data(), file.text().data(), p.size_bytes());
}

Dataset samples(size_t count) {
  Dataset d;
  for (size_t r = 0; r < count; ++r) {
    const size_t length = 4 + r % 5;
    std::vector<int32_t> ids;
    std::vector<uint8_t> has_loss;
    for (size_t t = 0; t < length; ++t) {
      ids.push_back(static_cast<int32_t>((r * 37 + t * t * 11) % 272));
      has_loss.push_back(t > 0 && (t + r) % 3 != 0);
    }
    d.add(ids, has_loss, static_cast<uint64_t>(r) << 32);
  }
  return d;
}

struct RunSetup {
  BatchOptions batches;
  TrainerOptions trainer;
  OptimizerKind optimizer = OptimizerKind::adamw;
  int rank = 0;  // 0: the golden adapter's
  bool evaluates = false;
  RunSetup() {
    batches.batch = 2, batches.accumulation = 2, batches.epochs = 2;
    trainer.schedule.learning_rate = 1e-2;
    trainer.schedule.warmup_steps = 2;
    trainer.lora_dropout = .1f;
    trainer.tensorboard = false;
    trainer.save_steps = 0;
  }
};

struct Outcome {
  Trainer::End end;
  std::vector<float> params;
  std::vector<std::byte> moments;
  RunState state;
  Metrics metrics;
};

class TrainerTest : public ::testing::Test {
 protected:
  // One process: from the newest checkpoint in the folder, or from the golden adapter.
  Outcome run(const RunSetup& setup, const std::string& folder, int64_t last = INT64_MAX) const {
    BatchPlan plan(data, setup.batches);
    BatchOptions in_order = setup.batches;
    in_order.shuffle = false, in_order.epochs = 1, in_order.max_steps = 0;
    BatchPlan eval(data, in_order);
    EngineOptions options;
    options.numerics = {DType::f32, DType::f32};
    options.train = plan.maxima();
    if (setup.evaluates) options.eval = eval.maxima();
    options.lora_dropout = setup.trainer.lora_dropout;
    options.optimizer = setup.optimizer;
    options.paging = {50000, 2, true, folder, {}};
    AdapterLayout layout = adapter.layout;
    std::vector<float> params = adapter.params;
    if (setup.rank > 0) {
      layout = layout_of_rank(model->desc(), setup.rank);
      params.resize(static_cast<size_t>(layout.size()));
      layout.initialize(1, params);
    }
    Engine engine(model, layout, options);
    engine.reserve();

    const AdapterFiles files{[&](const std::string& to) { write_params(to, engine.params()); }, read_params};
    const CheckpointStore store(folder, {{"kind", "test"}}, files.write);
    TrainerOptions how = setup.trainer;
    how.output_dir = folder;
    how.schedule.total_steps = plan.total_steps();
    RunState from;
    if (const auto found = store.newest([](const std::string& line) { ADD_FAILURE() << line; })) {
      store.load(*found, plan.total_steps(), files.read, engine);
      from = found->state;
    } else {
      set_params(engine, params);
    }
    Watcher watcher;
    watcher.last = last;
    Trainer trainer(engine, plan, setup.evaluates ? &eval : nullptr, store, files, how, watcher);
    Outcome out;
    out.end = trainer.run(from);
    out.params.assign(engine.params().begin(), engine.params().end());
    out.moments = moments_of(engine);
    out.state = trainer.state();
    out.metrics = trainer.metrics();
    return out;
  }

  Dataset data = samples(9);
  std::shared_ptr<const Model> model = load_golden("llama");
  GoldenAdapter adapter{model->desc(), "llama/adapter"};
};

void expect_same(const Outcome& got, const Outcome& want) {
  EXPECT_EQ(got.params, want.params);
  EXPECT_TRUE(got.moments == want.moments);
  EXPECT_EQ(got.state.step, want.state.step);
  EXPECT_EQ(got.state.tokens, want.state.tokens);
  EXPECT_EQ(got.state.best_loss, want.state.best_loss);
  EXPECT_EQ(got.state.best_step, want.state.best_step);
  ASSERT_EQ(got.metrics.train.size(), want.metrics.train.size());
  for (size_t i = 0; i < want.metrics.train.size(); ++i) {
    const TrainMetrics &g = got.metrics.train[i], &w = want.metrics.train[i];
    EXPECT_EQ(g.step, w.step);
    EXPECT_EQ(g.epoch, w.epoch);
    EXPECT_EQ(g.loss, w.loss) << w.step;
    EXPECT_EQ(g.grad_norm, w.grad_norm) << w.step;
    EXPECT_EQ(g.learning_rate, w.learning_rate) << w.step;
    EXPECT_EQ(g.tokens, w.tokens) << w.step;
  }
  ASSERT_EQ(got.metrics.eval.size(), want.metrics.eval.size());
  for (size_t i = 0; i < want.metrics.eval.size(); ++i)
    EXPECT_EQ(got.metrics.eval[i].eval_loss, want.metrics.eval[i].eval_loss) << i;
}

// Stopped twice at a line of metrics (a watcher sees logged steps only), and killed between two of them.
TEST_F(TrainerTest, AResumedRunGivesTheBitsOfAnUnbrokenOne) {
  for (OptimizerKind optimizer :
       {OptimizerKind::adamw, OptimizerKind::adamw_8bit, OptimizerKind::paged_adamw_8bit,
        OptimizerKind::paged_adamw_32bit, OptimizerKind::sgd}) {
    SCOPED_TRACE(kOptimizerNames[static_cast<size_t>(optimizer)]);
    RunSetup setup;
    setup.optimizer = optimizer;
    // Tensors with moments of 8 bits and others.
    if (has_8bit(optimizer)) setup.rank = 32;
    setup.trainer.logging_steps = 2;
    setup.evaluates = true;
    setup.trainer.schedule.learning_rate = .5;
    const test::TempFolder unbroken;
    const Outcome want = run(setup, unbroken.path());
    ASSERT_EQ(want.end, Trainer::End::done);
    ASSERT_EQ(want.state.step, 6);
    setup.trainer.save_steps = 1;
    const test::TempFolder folder;
    EXPECT_EQ(run(setup, folder.path(), 1).end, Trainer::End::interrupted);
    EXPECT_EQ(run(setup, folder.path(), 1).end, Trainer::End::interrupted);
    expect_same(run(setup, folder.path()), want);

    const test::TempFolder odd;
    run(setup, odd.path(), 2);
    std::filesystem::remove_all(odd / "checkpoint-4");
    expect_same(run(setup, odd.path()), want);
  }
}

// Four microbatches of one row are one of four: the loss is divided by the whole step's tokens. Bounds:
// llama_test.cc's, for a loss and for a first norm.
TEST_F(TrainerTest, AccumulationIsALargerBatch) {
  RunSetup one, four;
  one.trainer.lora_dropout = four.trainer.lora_dropout = .3f;
  one.batches.batch = 4, one.batches.accumulation = 1;
  four.batches.batch = 1, four.batches.accumulation = 4;
  const test::TempFolder a, b;
  const Metrics want = run(one, a.path(), 1).metrics, got = run(four, b.path(), 1).metrics;
  EXPECT_NEAR(got.train[0].loss / want.train[0].loss, 1, 2e-6);
  EXPECT_NEAR(got.train[0].grad_norm / want.train[0].grad_norm, 1, 1e-5);
  EXPECT_EQ(got.train[0].tokens, want.train[0].tokens);
}

// With sgd a clipped step is as long as rate * max_grad_norm, an unclipped one rate * norm. Each parameter's
// step is rounded to the parameter's precision.
TEST_F(TrainerTest, ClippingBoundsTheStep) {
  double size = 0;
  for (float p : adapter.params) size += static_cast<double>(p) * p;
  for (double most : {0., .25, 1e6}) {
    RunSetup setup;
    setup.optimizer = OptimizerKind::sgd;
    setup.trainer.schedule = {ScheduleType::constant, .5, 0, 0, {}};
    setup.trainer.max_grad_norm = most;
    const test::TempFolder folder;
    const Outcome o = run(setup, folder.path(), 1);
    const double norm = o.metrics.train[0].grad_norm;
    double way = 0;
    for (size_t i = 0; i < o.params.size(); ++i)
      way += std::pow(static_cast<double>(o.params[i]) - adapter.params[i], 2);
    ASSERT_GT(norm, .5);
    const double want = .5 * (most == .25 ? .25 : norm);
    EXPECT_NEAR(std::sqrt(way), want, 2e-6 * want + std::sqrt(size) * std::ldexp(1, -23)) << most;
  }
}

// The second line is what the engine says of the second step's data, from the first step's checkpoint, under
// masks of that step.
TEST_F(TrainerTest, ALineIsThatOfItsStep) {
  RunSetup setup;
  setup.trainer.save_steps = 1;
  const test::TempFolder folder;
  const TrainMetrics line = run(setup, folder.path(), 2).metrics.train[1];

  BatchPlan plan(data, setup.batches);
  EngineOptions options;
  options.numerics = {DType::f32, DType::f32};
  options.train = plan.maxima();
  options.lora_dropout = setup.trainer.lora_dropout;
  Engine engine(model, adapter.layout, options);
  engine.reserve();
  engine.set_params([&](std::span<float> p) { read_params(folder / "checkpoint-1", p); });
  Step step;
  plan.step(1, step);
  engine.zero_grads();
  double loss = 0;
  for (const Batch& b : step.microbatches)
    loss += engine
                .train(b, {setup.trainer.seed, 1, 0, setup.trainer.lora_dropout},
                       static_cast<float>(1. / static_cast<double>(step.loss_tokens)))
                .loss;
  EXPECT_EQ(line.loss, loss / static_cast<double>(step.loss_tokens));
  EXPECT_EQ(line.grad_norm, engine.grad_norm());
}

TEST_F(TrainerTest, EachStepUsesItsRate) {
  RunSetup setup;
  const test::TempFolder folder;
  const Outcome o = run(setup, folder.path());
  ScheduleOptions options = setup.trainer.schedule;
  options.total_steps = 6;
  const Schedule schedule(options);
  ASSERT_EQ(o.metrics.train.size(), 6u);
  for (int64_t s = 0; s < 6; ++s)
    EXPECT_EQ(o.metrics.train[static_cast<size_t>(s)].learning_rate, schedule.rate(s)) << s;
  EXPECT_EQ(o.metrics.train[2].epoch, 1.);
  EXPECT_EQ(o.metrics.train[5].tokens, 2 * data.tokens());
}

// A rate that wrecks the adapter: evaluations only get worse, so patience ends the run and the best adapter,
// the one before the first step, comes back.
TEST_F(TrainerTest, PatienceAndTheBestAdapter) {
  RunSetup setup;
  setup.evaluates = true;
  setup.trainer.eval_steps = 1;
  setup.trainer.patience = 2;
  setup.trainer.load_best = true;
  setup.trainer.schedule = {ScheduleType::constant, 2, 0, 0, {}};
  const test::TempFolder folder;
  const Outcome o = run(setup, folder.path());
  EXPECT_EQ(o.end, Trainer::End::stopped_early);
  EXPECT_EQ(o.state.step, 2);
  EXPECT_EQ(o.state.best_step, 0);
  EXPECT_EQ(o.params, adapter.params);
}

}  // namespace
}  // namespace qlora::testing
