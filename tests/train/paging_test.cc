// What leaves memory, and in what order; and that no bit hangs on it.
#include <gtest/gtest.h>

#include <cstring>

#include "memory/page_backends.h"
#include "tests/support/checking_pages.h"
#include "tests/support/random_llama.h"
#include "tests/support/temp_folder.h"
#include "tests/train/llama_fixture.h"

namespace qlora::testing {
namespace {

struct Mixture {
  bool weights, inputs;
  OptimizerKind optimizer;
  bool moments;
  Checkpointing checkpointing;
  std::vector<SavePolicy> pinned = {};
};

PagedWeights::Through checked(uint64_t seed, int64_t fail_at = -1) {
  return [=](std::unique_ptr<PageBackend> file, const Pager& pager) {
    return std::make_unique<CheckingPages>(64, pager.slot_bytes(), pager.slots(),
                                           CheckingPages::Options{.seed = seed, .fail_at = fail_at},
                                           std::move(file));
  };
}

const std::vector<Batch>& batches() {
  static const std::vector<Batch> b = {batch_of("models/llama/train.jsonl", {0, 4}),
                                       batch_of("models/llama/train.jsonl", {1}),
                                       batch_of("models/llama/train.jsonl", {1, 2, 3})};
  return b;
}

// Enough blocks that their inputs leave the slots.
const std::string& deep_llama() {
  static const test::TempFolder folder;
  static const bool written = (test::write_random_llama(folder.path(), {9, 32, 48, 4, 2, 400}, .3f), true);
  static_cast<void>(written);
  return folder.path();
}

// Three steps on batches of different sizes, an evaluation between; the adapter's bytes, and the loss.
struct Trained {
  std::vector<float> params;
  double loss = 0;
  uint64_t weights_read = 0, inputs_read = 0;
};
Trained trained(const Mixture& m, const PagedWeights::Through& through = {}) {
  static const auto model = Model::load(Checkpoint::open(deep_llama()), {}, 2);
  EngineOptions options;
  options.threads = 2;
  options.train = options.eval = maxima_of(batches());
  options.lora_dropout = .05f;
  options.checkpointing = m.checkpointing;
  options.optimizer = m.optimizer;
  options.paging.always = m.moments;
  options.paging.folder = ::testing::TempDir();
  options.paging.page_bytes = 4096;
  options.always_page_weights = m.weights;
  options.always_page_inputs = m.inputs;
  options.pages_through = through;
  options.pinned = m.pinned;
  const AdapterLayout layout = layout_of_rank(model->desc(), 4);
  Engine engine(model, layout, options);
  EXPECT_EQ(engine.plan().weights_paged, m.weights);
  if (m.pinned.empty()) {
    EXPECT_EQ(engine.plan().inputs_paged > 0, m.inputs);
  }
  engine.reserve();
  engine.set_poison(true);
  engine.set_params([&](std::span<float> p) { layout.initialize(7, p); });
  Trained out;
  for (size_t i = 0; i < batches().size(); ++i) {
    engine.zero_grads();
    out.loss += engine.train(batches()[i], {1, i, 0, .05f}, .1f).loss;
    AdamWHyper h;
    h.lr = .01f;
    h.step = static_cast<int64_t>(i) + 1;
    h.grad_scale = static_cast<float>(1 / engine.grad_norm());
    engine.update(h);
    out.loss += engine.evaluate(batches()[i]).loss;
  }
  out.params.assign(engine.params().begin(), engine.params().end());
  // A plan knows what a pass transfers: an evaluation's apart.
  const PageTraffic &pass = engine.plan().microbatch_pages, &update = engine.plan().update_pages;
  const PagingCost& cost = engine.paging_cost();
  if (cost.saved.bytes_read > 0)  // as much as in the largest batch, at most
    EXPECT_LE(cost.weights.bytes_read + cost.saved.bytes_read, batches().size() * pass.bytes_read);
  else
    EXPECT_EQ(cost.weights.bytes_read, batches().size() * pass.bytes_read);
  EXPECT_LE(cost.saved.bytes_written, batches().size() * pass.bytes_written);
  EXPECT_EQ(pass.bytes_written > 0, cost.saved.bytes_read > 0);
  EXPECT_EQ(cost.moments.bytes_read, batches().size() * update.bytes_read);
  EXPECT_EQ(cost.moments.bytes_written, batches().size() * update.bytes_written);
  EXPECT_EQ(update.bytes_read > 0, m.moments);
  out.weights_read = engine.paging_cost().weights.bytes_read;
  out.inputs_read = engine.paging_cost().saved.bytes_read;
  return out;
}

void expect_same(const Trained& a, const Trained& b) {
  EXPECT_EQ(a.loss, b.loss);
  ASSERT_EQ(a.params.size(), b.params.size());
  EXPECT_EQ(std::memcmp(a.params.data(), b.params.data(), a.params.size() * sizeof(float)), 0);
}

// From files that are on time, and where a pager of the passes is there from pages that are not.
void expect_same_however_paged(const Trained& plain, const Mixture& m, uint64_t seed) {
  SCOPED_TRACE(cat("weights ", m.weights, ", inputs ", m.inputs, ", moments ", m.moments, ", seed ", seed));
  const Trained got = trained(m);
  expect_same(plain, got);
  EXPECT_EQ(got.weights_read > 0, m.weights);
  EXPECT_EQ(got.inputs_read > 0, m.inputs);
  if (m.weights || m.inputs) expect_same(plain, trained(m, checked(seed)));
}

TEST(Paging, EveryMixtureGivesTheSameBits) {
  const Trained plain = trained({false, false, OptimizerKind::adamw, false, Checkpointing::none});
  EXPECT_GT(plain.loss, 0);
  uint64_t seed = 0;
  for (const bool weights : {false, true})
    for (const bool inputs : {false, true})
      for (const bool moments : {false, true})
        for (const Checkpointing c : {Checkpointing::none, Checkpointing::all})
          expect_same_however_paged(
              plain,
              {weights, inputs, moments ? OptimizerKind::paged_adamw_32bit : OptimizerKind::adamw, moments,
               c},
              seed++);
}

// Moments of 8 bits have their own pages in the update; of the passes they see nothing but gradients.
TEST(Paging, MomentsOfEightBitsToo) {
  const Trained plain = trained({false, false, OptimizerKind::adamw_8bit, false, Checkpointing::none});
  for (const bool others : {false, true})
    expect_same_however_paged(
        plain, {others, others, OptimizerKind::paged_adamw_8bit, true, Checkpointing::all}, 16);
}

// Every group of fields of every block: in memory, computed again or a page, from files that are on time and
// pages that are not.
TEST(Paging, AnyMixtureOfPagedFieldsGivesTheSameBits) {
  const Mixture whole{false, false, OptimizerKind::adamw, false, Checkpointing::none};
  const Trained plain = trained(whole);
  Mixture m = whole;
  m.pinned.assign(9, SavePolicy::all(Keep::page));
  const Trained paged = trained(m);
  expect_same(plain, paged);
  EXPECT_GT(paged.inputs_read, 0u);
  std::mt19937 random(11);
  for (uint64_t draw = 0; draw < 12; ++draw) {
    for (SavePolicy& p : m.pinned) {
      p.input = random() % 2 == 0 ? Keep::store : Keep::page;
      SavePolicy::for_each_choice(p, [&](const char*, Keep& k) { k = static_cast<Keep>(random() % 3); });
    }
    SCOPED_TRACE(draw);
    expect_same(plain, draw % 2 == 0 ? trained(m) : trained(m, checked(draw)));
  }
}

TEST(Paging, AFailedTransferEndsTheStep) {
  for (const bool weights : {false, true})
    for (int64_t n = 0; n < (weights ? 2 : 8);
         ++n) {  // the head's pager reads twice, inputs go 5 out and 5 back
      try {
        trained({weights, !weights, OptimizerKind::adamw, false, Checkpointing::all}, checked(1, n));
        FAIL() << "transfer " << n << " failed and nobody noticed";
      } catch (const Error& e) {
        EXPECT_EQ(e.category(), Category::io) << e.what();
      }
    }
}

// 1.1 billion weights, planned and never read.
TEST(Paging, WhatCostsMostTimeLeavesMemoryLast) {
  const test::TempFolder source;
  test::write_hollow_llama(source.path(), {22, 2048, 5632, 32, 4, 32000});
  const auto model = Model::outline(Checkpoint::open(source.path()), {});
  const AdapterLayout layout = layout_of_rank(model->desc(), 8);
  EngineOptions options;
  options.train = {.tokens = 512, .documents = 1, .longest = 512, .loss_rows = 511};
  options.optimizer = OptimizerKind::paged_adamw_8bit;
  options.process_bytes = size_t{30} << 20;
  options.must_fit = false;
  const auto plan = [&](size_t budget) {
    options.memory_budget = budget;
    const EnginePlan p = Engine(model, layout, options).plan();
    EXPECT_TRUE(p.fits) << budget;
    EXPECT_LE(p.total_bytes, budget);
    size_t sum = 0;
    for (const PlanRegion& r : p.regions) sum += r.bytes;
    EXPECT_EQ(sum, p.total_bytes);
    return p;
  };
  constexpr size_t kMiB = size_t{1} << 20;
  // The most that a choice leaves, and then a little less than that.
  const EnginePlan stored = plan(8000 * kMiB);
  EXPECT_EQ(stored.choices(), "stored");
  const EnginePlan mixed = plan(stored.total_bytes - 100 * kMiB);
  EXPECT_NE(mixed.choices(), "stored");
  EXPECT_FALSE(stored.inputs_paged || stored.weights_paged || mixed.inputs_paged || mixed.weights_paged);
  options.checkpointing = Checkpointing::all;
  const EnginePlan recomputed = plan(8000 * kMiB);
  options.always_page_inputs = true;
  const EnginePlan inputs = plan(8000 * kMiB);
  options.always_page_inputs = false;
  options.checkpointing = Checkpointing::automatic;
  const EnginePlan less = plan(recomputed.total_bytes - 20 * kMiB);
  EXPECT_TRUE(less.inputs_paged > 0 && !less.weights_paged);
  EXPECT_LT(less.inputs_paged, model->block_count()) << "more than is needed";
  const EnginePlan least = plan(inputs.total_bytes - 20 * kMiB);
  EXPECT_TRUE(least.weights_paged && least.inputs_paged == 0);
}

}  // namespace
}  // namespace qlora::testing
