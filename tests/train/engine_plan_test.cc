// Plans of models of real shape, of which only config.json is there: every byte named, packed tightly, linear
// in the tokens, and never slower than a uniform choice that fits.
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/cuda/cublaslt.h"
#include "kernels/gemm/gemm_choice.h"
#include "model/block.h"
#include "model/io/config_checkpoint.h"
#include "model/io/peft.h"
#include "tests/support/golden_tensors.h"
#include "tests/train/llama_fixture.h"
#include "train/reach.h"

namespace qlora::testing {
namespace {

struct Shapes {
  explicit Shapes(const std::string& config) {
    BaseSpec spec;
    spec.quantize = QuantizedSpec{};
    model = Model::outline(open_shapes(golden::path(config)), spec);
    std::vector<LoraChoice> choices;
    for (int b = 0; b < model->block_count(); ++b)
      for (int k = 0; k < kLinears; ++k) choices.push_back({b, static_cast<LinearKind>(k), 16, 2});
    layout = AdapterLayout(model->desc(), choices);
  }
  EngineOptions options(int64_t rows, int64_t length) const {
    EngineOptions o;
    o.train = full_rows(rows, length);
    o.batch_rows = rows;
    o.threads = 2;
    o.process_bytes = size_t{20} << 20;
    o.must_fit = false;
    return o;
  }
  EnginePlan plan(const EngineOptions& o) const { return Engine(model, layout, o).plan(); }

  std::shared_ptr<const Model> model;
  AdapterLayout layout;
};

const char* const kTiny = "configs/tinyllama_1_1b";

TEST(EnginePlanTest, RegionsAddUpAndArePackedTightly) {
  for (const char* config : {kTiny, "configs/llama3_1_8b", "configs/qwen3_8b", "models/llama"}) {
    const Shapes shapes(config);
    for (const Checkpointing c : {Checkpointing::none, Checkpointing::all, Checkpointing::automatic}) {
      EngineOptions o = shapes.options(2, 1024);
      o.checkpointing = c;
      if (c == Checkpointing::automatic) {  // half of the way from one to the other
        o.memory_budget = size_t{1} << 40;
        const size_t most = shapes.plan(o).total_bytes;
        o.checkpointing = Checkpointing::all;
        o.memory_budget = (most + shapes.plan(o).total_bytes) / 2;
        o.checkpointing = c;
      } else {
        o.memory_budget = size_t{1} << 40;
      }
      const EnginePlan plan = shapes.plan(o);
      EXPECT_TRUE(plan.fits);
      size_t sum = 0;
      for (const PlanRegion& r : plan.regions) sum += r.bytes;
      EXPECT_EQ(sum, plan.total_bytes) << config;
      EXPECT_LE(static_cast<double>(plan.arena_bytes), 1.03 * static_cast<double>(plan.live_bytes)) << config;
    }
  }
}

// The same decisions that a peer would make, and what the planner makes of the same bytes.
TEST(EnginePlanTest, NeverSlowerThanAUniformChoiceThatFits) {
  const Shapes shapes(kTiny);
  EngineOptions o = shapes.options(2, 1024);
  o.memory_budget = size_t{1} << 40;
  o.checkpointing = Checkpointing::none;
  const EnginePlan stored = shapes.plan(o);
  o.checkpointing = Checkpointing::all;
  const EnginePlan least = shapes.plan(o);
  ASSERT_LT(least.total_bytes, stored.total_bytes);
  o.checkpointing = Checkpointing::automatic;
  double former = least.extra_seconds * 1.0001;
  for (int i = 0; i <= 6; ++i) {
    o.memory_budget =
        least.total_bytes + (stored.total_bytes - least.total_bytes) * static_cast<size_t>(i) / 6;
    const EnginePlan plan = shapes.plan(o);
    EXPECT_TRUE(plan.fits) << i;
    EXPECT_LE(plan.total_bytes, *o.memory_budget);
    EXPECT_LE(plan.extra_seconds, former) << "more room and slower";
    former = plan.extra_seconds * 1.0001;
    for (const int every : {1, 2, 3}) {
      o.pinned.assign(static_cast<size_t>(shapes.model->block_count()), {});
      for (size_t b = 0; b < o.pinned.size(); b += static_cast<size_t>(every))
        o.pinned[b] = SavePolicy::all(Keep::recompute);
      const EnginePlan uniform = shapes.plan(o);
      o.pinned.clear();
      if (uniform.fits && !uniform.inputs_paged && !uniform.weights_paged) {
        EXPECT_LE(plan.extra_seconds, uniform.extra_seconds * 1.0001) << i << " every " << every;
      }
    }
  }
  EXPECT_EQ(former, 0) << "with room for everything nothing is computed again";
}

// Plans of one row of 2k tokens, twice as many, ... 128k.
std::vector<double> planned_bytes(const Shapes& shapes, DeviceKind device, Checkpointing c) {
  std::vector<double> bytes;
  for (int64_t tokens = 2048; tokens <= 131072; tokens *= 2) {
    EngineOptions o = shapes.options(1, tokens);
    o.device = {device, 0};
    o.memory_budget = size_t{1} << 44;
    o.checkpointing = c;
    o.always_page_inputs = device == DeviceKind::cuda;
    bytes.push_back(static_cast<double>(shapes.plan(o).device_bytes));
  }
  return bytes;
}

// On a card both sides grow so, whatever has left it. On a CPU the peak may move from the loss, with its
// chunk of logits, to a block's backward pass, where attention on tiles keeps of each token k, across, in
// bf16, and fp32 sums of dK and dV: the slope grows by as much.
TEST(EnginePlanTest, GrowsLinearlyFrom2kTo128kTokens) {
  const Shapes shapes("configs/llama3_1_8b");
  const BlockDesc& block = shapes.model->desc().blocks[0];
  // And 64 bytes for a block of 64 keys.
  const auto keys = static_cast<double>(block.kv_dim() * (2 + 4 + 4) + block.kv_heads);
  set_decodes_ahead(false);
  for (const DeviceKind device : {DeviceKind::cpu, DeviceKind::cuda})
    for (const Checkpointing c : {Checkpointing::none, Checkpointing::all}) {
      const std::vector<double> bytes = planned_bytes(shapes, device, c);
      std::vector<double> slopes;
      for (size_t i = 1; i < bytes.size(); ++i)
        slopes.push_back((bytes[i] - bytes[i - 1]) / (2048. * static_cast<double>(size_t{1} << (i - 1))));
      const double bend = device == DeviceKind::cpu ? keys : .01 * slopes[0];
      for (size_t i = 1; i < slopes.size(); ++i) EXPECT_NEAR(slopes[i], slopes[0], bend) << i;
    }
  set_decodes_ahead(true);
}

// Two panels lie on the card through a pass where one did while a product read it, each of a block's largest
// matrix in bf16 with LoRA's term of 16 beside it: one more where the peak is that product's, two where it is
// not, whatever the tokens.
TEST(EnginePlanTest, DecodingAheadCostsPanelsWhateverTheTokens) {
  const Shapes shapes("configs/llama3_1_8b");
  const BlockDesc& block = shapes.model->desc().blocks[0];
  const auto panel = static_cast<double>(2 * block.ff * (block.dim + 16));
  for (const Checkpointing c : {Checkpointing::none, Checkpointing::all}) {
    set_decodes_ahead(false);
    const std::vector<double> in_turn = planned_bytes(shapes, DeviceKind::cuda, c);
    set_decodes_ahead(true);
    const std::vector<double> ahead = planned_bytes(shapes, DeviceKind::cuda, c);
    for (size_t i = 0; i < ahead.size(); ++i) {
      EXPECT_GE(ahead[i] - in_turn[i], panel) << i;
      EXPECT_LE(ahead[i] - in_turn[i], 2 * (panel + Trace::kAlign)) << i;
    }
  }
}

// Wide logits take their room before anything, and are the first that is given up: before a layer is computed
// again, before moments leave.
TEST(EnginePlanTest, LogitsAreWideWhereThereIsRoomForAllElse) {
  const Shapes shapes("configs/llama3_1_8b");
  for (const OptimizerKind optimizer : {OptimizerKind::adamw, OptimizerKind::paged_adamw_32bit}) {
    EngineOptions o = shapes.options(1, 2048);
    o.optimizer = optimizer;
    const auto plan = [&](size_t budget) {
      o.memory_budget = budget;
      EnginePlan p = shapes.plan(o);
      EXPECT_TRUE(p.fits);
      EXPECT_EQ(p.choices(), "stored") << budget;
      EXPECT_EQ(p.update_pages.bytes_read + p.update_pages.bytes_written, 0u)
          << "moments left for " << budget;
      return p;
    };
    const auto logits = [](const EnginePlan& p) {
      for (const PlanRegion& r : p.regions)
        if (r.name == "logits") return static_cast<int64_t>(r.bytes);
      return int64_t{0};
    };
    const EnginePlan wide = plan(size_t{1} << 44), narrow = plan(wide.total_bytes - 1);
    EXPECT_LE(logits(wide), 2 * Decoder::kLogitsBytes);
    EXPECT_GT(logits(wide), Decoder::kLogitsBytes);
    EXPECT_LE(logits(narrow), Decoder::kLogitsBytes);
    EXPECT_GT(logits(narrow), Decoder::kLogitsBytes / 2);
    plan(narrow.total_bytes);
  }
}

// Twice what the best peer reaches on each card, and a card of 6 GB at 2,048 tokens: no GPU needed to say so.
TEST(EnginePlanTest, ModelsOf8BillionOnCudaCards) {
  constexpr size_t kGB = 1000000000;
  for (const char* config : {"configs/llama3_1_8b", "configs/qwen3_8b"}) {
    SCOPED_TRACE(config);
    const Shapes shapes(config);
    EngineOptions o = shapes.options(1, 2048);
    o.device = {DeviceKind::cuda, 0};
    o.rates.transfer = 1.2e10;
    o.memory_budget = 6 * kGB;
    const EnginePlan small = shapes.plan(o);
    EXPECT_TRUE(small.fits) << small.device_bytes;
    size_t device = 0, host = 0, embedding = 0, product = 0;
    for (const PlanRegion& r : small.regions) {
      if (r.name == "workspace/gemm workspace") product = r.bytes;
      (r.where == Place::device ? device : host) += r.bytes;
      if (r.where != Place::device && r.name == "base/embeddings") embedding += r.bytes;
    }
    EXPECT_EQ(device, small.device_bytes);
    EXPECT_EQ(host, small.host_bytes);
    EXPECT_EQ(device + host, small.total_bytes);
    const ModelDesc& d = shapes.model->desc();
    EXPECT_EQ(embedding, static_cast<size_t>(d.vocab * d.dim) * sizeof(bf16));
    // cuBLASLt's, and never two matrices of a layer at once: one, and LoRA's, and as much of a tile's rows.
    const int64_t ff = d.blocks[0].ff;
    EXPECT_GT(product, cuda::kCublasLtWorkspace + static_cast<size_t>(ff * d.dim) * sizeof(bf16));
    EXPECT_LE(product, cuda::kCublasLtWorkspace + 1024 +
                           static_cast<size_t>(ff * (d.dim + 64) + kRowTile * (ff + 64)) * sizeof(bf16));
    for (const auto& [card, tokens] :
         {std::pair<size_t, int64_t>{8, 2972}, {12, 21848}, {24, 78475}, {80, 342733}}) {
      o.memory_budget = card * kGB;
      const EnginePlan plan = Reach::smallest(shapes.model, shapes.layout, o, 1, 2 * tokens);
      EXPECT_TRUE(plan.fits) << card << " GB take " << plan.device_bytes;
      // Every input is in host memory, once.
      EXPECT_GE(plan.host_bytes, static_cast<size_t>(2 * tokens * d.dim) * sizeof(float) * d.blocks.size());
    }
  }
}

// Where transfers hide, fields leave rather than are computed again; a slow way takes inputs alone.
TEST(EnginePlanTest, WhatHidesLeavesBeforeItIsComputedAgain) {
  const Shapes shapes(kTiny);
  EngineOptions o = shapes.options(1, 8192);
  o.device = {DeviceKind::cuda, 0};
  o.rates = {.product = 6e13, .attention = 4e13, .bandwidth = 4e11, .transfer = 1e13};
  o.memory_budget = size_t{1} << 40;
  const EnginePlan stored = shapes.plan(o);
  EXPECT_EQ(stored.choices(), "stored");
  o.memory_budget = stored.device_bytes / 2;
  const EnginePlan fast = shapes.plan(o);
  EXPECT_TRUE(fast.fits);
  EXPECT_EQ(fast.extra_seconds, 0) << fast.choices();
  EXPECT_NE(fast.choices().find("paged"), std::string::npos);
  o.rates.transfer = 1e9;
  const EnginePlan slow = shapes.plan(o);
  EXPECT_TRUE(slow.fits);
  EXPECT_GT(slow.extra_seconds, 0);
  for (const SavePolicy& p : slow.policy)
    SavePolicy::for_each_choice(p, [](const char* name, Keep k) { EXPECT_NE(k, Keep::page) << name; });
  o.smallest = true;
  EXPECT_LE(shapes.plan(o).device_bytes, slow.device_bytes);
}

// What leaves the card needs room: fewer inputs leave where the host has none for all.
TEST(EnginePlanTest, TheHostsMemoryIsALimitToo) {
  const Shapes shapes(kTiny);
  EngineOptions o = shapes.options(1, 16384);
  o.device = {DeviceKind::cuda, 0};
  o.rates.transfer = 1.2e10;
  o.memory_budget = size_t{1} << 40;
  o.checkpointing = Checkpointing::all;
  const EnginePlan resident = shapes.plan(o);
  EXPECT_EQ(resident.inputs_paged, 0);
  o.always_page_inputs = true;
  const EnginePlan paged = shapes.plan(o);
  o.always_page_inputs = false;
  EXPECT_EQ(paged.inputs_paged, shapes.model->block_count());
  o.memory_budget = (resident.device_bytes + paged.device_bytes) / 2;
  const EnginePlan some = shapes.plan(o);
  EXPECT_TRUE(some.fits);
  EXPECT_GT(some.inputs_paged, 0);
  EXPECT_LT(some.inputs_paged, shapes.model->block_count());
  EXPECT_LT(some.host_bytes, paged.host_bytes);
  o.host_budget = some.host_bytes;
  EXPECT_TRUE(shapes.plan(o).fits);
  o.host_budget = some.host_bytes - (size_t{130} << 20);  // an input is of 128 MiB
  EXPECT_FALSE(shapes.plan(o).fits);
  o.smallest = true;
  EXPECT_FALSE(shapes.plan(o).fits);
  o.host_budget = some.host_bytes;
  EXPECT_TRUE(shapes.plan(o).fits);
  o.smallest = false;
  o.host_budget = some.host_bytes / 2;
  o.must_fit = true;
  try {
    shapes.plan(o);
    FAIL() << "fits into half the host memory";
  } catch (const Error& e) {
    EXPECT_EQ(e.category(), Category::memory);
  }
}

// A plan from config.json alone is the plan of the model itself, but for what the system maps of its files.
TEST(EnginePlanTest, ShapesAloneGiveTheSamePlan) {
  const BaseSpec spec{QuantizedSpec{}};
  const GoldenAdapter adapter(load_golden("llama")->desc(), "llama/adapter");
  EngineOptions o;
  o.train = full_rows(2, 48);
  o.process_bytes = 1 << 20;
  EnginePlan real = Engine(load_golden("llama", spec), adapter.layout, o).plan();
  const auto around = std::find_if(real.regions.begin(), real.regions.end(),
                                   [](const PlanRegion& r) { return r.name == "base/around"; });
  ASSERT_NE(around, real.regions.end());
  real.total_bytes -= around->bytes;
  real.regions.erase(around);
  const auto shapes = Model::outline(open_shapes(golden::path("models/llama/config.json")), spec);
  const EnginePlan plan = Engine(shapes, adapter.layout, o).plan();
  EXPECT_EQ(plan.total_bytes, real.total_bytes);
  ASSERT_EQ(plan.regions.size(), real.regions.size());
  for (size_t i = 0; i < plan.regions.size(); ++i) {
    EXPECT_EQ(plan.regions[i].name, real.regions[i].name);
    EXPECT_EQ(plan.regions[i].bytes, real.regions[i].bytes) << plan.regions[i].name;
  }
}

TEST(EnginePlanTest, ReachEndsWhereNoMoreFits) {
  const Shapes shapes(kTiny);
  EngineOptions o = shapes.options(1, 64);
  o.memory_budget = size_t{2} << 30;
  o.checkpointing = Checkpointing::all;
  const int64_t longest = Reach::longest_sequence(shapes.model, shapes.layout, o, 1 << 20);
  ASSERT_GT(longest, 64);
  const auto fits = [&](int64_t rows, int64_t length) {
    EngineOptions at = o;
    at.train = full_rows(rows, length);
    return shapes.plan(at).fits;
  };
  EXPECT_TRUE(fits(1, longest));
  EXPECT_FALSE(fits(1, longest + 64));
  const int64_t rows = Reach::largest_batch(shapes.model, shapes.layout, o, 512, 1 << 10);
  ASSERT_GT(rows, 1);
  EXPECT_TRUE(fits(rows, 512));
  EXPECT_FALSE(fits(rows + 1, 512));
  o.memory_budget = size_t{100} << 20;
  EXPECT_EQ(Reach::longest_sequence(shapes.model, shapes.layout, o, 1 << 20), 0);
}

}  // namespace
}  // namespace qlora::testing
