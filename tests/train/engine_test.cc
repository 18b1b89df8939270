// A step of the engine: the same whatever way its documents lie in batches, inside the planned arena, and
// without reading what it has not written.
#include <gtest/gtest.h>

#include <algorithm>
#include <cfloat>
#include <cstring>

#include "model/io/json.h"
#include "tests/support/golden.h"
#include "tests/train/llama_fixture.h"

namespace qlora::testing {
namespace {

Dataset golden_rows() {
  Dataset data;
  uint64_t row = 0;
  for (const std::string& line : test::lines(test::read_golden("models/llama/train.jsonl"))) {
    const Json j = parse_json(line, "train.jsonl");
    const auto ids = j["input_ids"].get<std::vector<int32_t>>();
    std::vector<uint8_t> mask;
    for (const int32_t label : j["labels"].get<std::vector<int32_t>>())
      mask.push_back(label >= 0 && !mask.empty());
    data.add(ids, mask, row++ << 32);
  }
  return data;
}

EngineOptions options_for(const BatchMaxima& train, DType compute, int threads = 2) {
  EngineOptions o;
  o.numerics.compute = compute;
  o.threads = threads;
  o.train = o.eval = train;
  o.lora_dropout = 0.05f;
  return o;
}

// A fresh engine with the golden adapter.
std::unique_ptr<Engine> engine_for(const std::shared_ptr<const Model>& model, const EngineOptions& options) {
  const GoldenAdapter adapter(model->desc(), "llama/adapter");
  auto engine = std::make_unique<Engine>(model, adapter.layout, options);
  engine->reserve();
  set_params(*engine, adapter.params);
  return engine;
}

struct Pass {
  double loss = 0, norm = 0;
  std::vector<float> grads;
};

Pass gradients(Engine& engine, const Step& s) {
  Pass p;
  engine.zero_grads();
  for (const Batch& b : s.microbatches)
    p.loss += engine.train(b, {1, 0, 0, 0.05f}, 1.0f / static_cast<float>(s.loss_tokens)).loss;
  p.loss /= static_cast<double>(s.loss_tokens);
  p.norm = engine.grad_norm();
  p.grads.assign(engine.grads().begin(), engine.grads().end());
  return p;
}

class EngineTest : public ::testing::TestWithParam<DType> {};

// Tokens are computed alone, so only the order in which gradients are added up differs: T terms a sum, each
// addition off by half an ulp, terms of the size of the largest sum.
TEST_P(EngineTest, BatchingLeavesLossAndGradients) {
  const auto model = load_golden("llama");
  const Dataset data = golden_rows();
  const double bound = static_cast<double>(data.tokens()) * FLT_EPSILON / 2;
  std::optional<Pass> first;
  struct Way {
    bool packing;
    int64_t batch, accumulation;
  };
  for (const Way& way :
       {Way{false, 1, 20}, Way{false, 20, 1}, Way{false, 3, 7}, Way{true, 1, 20}, Way{true, 4, 20}}) {
    BatchOptions o;
    o.packing = way.packing;
    o.max_seq_length = 64;
    o.batch = way.batch;
    o.accumulation = way.accumulation;
    BatchPlan plan(data, o);
    ASSERT_EQ(plan.steps_per_epoch(), 1);
    Step step;
    plan.step(0, step);
    ASSERT_EQ(step.tokens, data.tokens());
    const auto engine = engine_for(model, options_for(plan.maxima(), GetParam()));
    const Pass p = gradients(*engine, step);
    if (!first) {
      first = p;
      continue;
    }
    EXPECT_NEAR(p.loss, first->loss, bound * first->loss);
    EXPECT_NEAR(p.norm, first->norm, bound * first->norm);
    for (const LoraModule& m : engine->layout().modules())
      for (const bool a : {true, false})
        EXPECT_LE(worst(part(p.grads, m, a), part(first->grads, m, a)), bound)
            << peft_key(m, a) << " packing " << way.packing << " batch " << way.batch;
  }
}

TEST_P(EngineTest, PoisonedArenaGivesTheSameBitsAndIsUsedToItsEnd) {
  const auto model = load_golden("llama");
  const std::vector<Batch> batches = {batch_of("models/llama/train.jsonl", {0, 1, 2}),
                                      batch_of("models/llama/train.jsonl", {1})};
  for (const Checkpointing c : {Checkpointing::none, Checkpointing::all}) {
    EngineOptions options = options_for(maxima_of({batches.data(), 1}), GetParam());
    options.checkpointing = c;
    std::vector<float> plain;
    double plain_loss = 0;
    for (const bool poison : {false, true}) {
      const auto engine = engine_for(model, options);
      engine->set_poison(poison);
      double loss = 0;
      for (int64_t n = 0; n < 3; ++n) {
        engine->zero_grads();
        for (const Batch& b : batches) loss += engine->train(b, {1, 0, 0, 0.05f}, 0.01f).loss;
        loss += engine->evaluate(batches[1]).loss;
        AdamWHyper h;
        h.lr = 1e-3;
        h.step = n + 1;
        h.grad_scale = static_cast<float>(1 / engine->grad_norm());
        engine->update(h);
      }
      const std::vector<float> params(engine->params().begin(), engine->params().end());
      if (!poison) {
        plain = params;
        plain_loss = loss;
        continue;
      }
      EXPECT_EQ(std::memcmp(params.data(), plain.data(), params.size() * sizeof(float)), 0);
      EXPECT_EQ(loss, plain_loss);
      // Poison marks what was handed out: the highest mark is the plan's end, less one row that may have been
      // computed as zeros (a document's last token has no gradient).
      const auto* begin =
          reinterpret_cast<const std::byte*>(std::min(engine->params().data(), engine->grads().data()));
      engine->save_moments(
          [&](MomentPart, std::span<const std::byte> bytes) { begin = std::min(begin, bytes.data()); });
      size_t high = engine->plan().arena_bytes;
      while (high > 0 && begin[high - 1] == std::byte{0}) --high;
      EXPECT_LT(engine->plan().arena_bytes - high,
                static_cast<size_t>(model->desc().vocab) * sizeof(float) + Trace::kAlign);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Compute, EngineTest, ::testing::Values(DType::f32, DType::bf16),
                         [](const auto& info) { return std::string(name_of(info.param)); });

}  // namespace
}  // namespace qlora::testing
