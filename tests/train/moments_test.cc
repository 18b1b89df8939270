// What optimizers remember: which tensors have 8 bits, blocks that begin with their tensor, pages that no
// result hangs on, and files of another optimizer.
#include "train/moments.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <map>

#include "kernels/adamw/adamw8bit_ref.h"
#include "memory/file.h"
#include "tests/support/checking_pages.h"
#include "tests/support/golden.h"
#include "tests/support/optim_numbers.h"
#include "tests/support/run_op.h"
#include "tests/support/temp_folder.h"
#include "tests/train/llama_fixture.h"
#include "train/checkpoint.h"

namespace qlora::testing {
namespace {

AdamWHyper hyper(int64_t step) { return {1e-2, .9, .95, 1e-8, .1, step, .5f}; }

struct Stepped {
  std::vector<float> params;
  std::map<MomentPart, std::vector<std::byte>> parts;
};

// Three steps from the numbers of tensor 7, as an engine does them.
Stepped run_moments(const AdapterLayout& layout, OptimizerKind kind, const Moments::Paging& paging = {},
                    int threads = 2) {
  const auto n = static_cast<uint32_t>(layout.size());
  Stepped out;
  Moments moments(layout, kind, paging);
  if (paging.always) moments.keep_in_memory(false);
  Trace state("state"), update("update"), save("save");
  const auto take = [&](MomentPart part, std::span<const std::byte> b) {
    out.parts[part].insert(out.parts[part].end(), b.begin(), b.end());
  };
  const auto pass = [&](Exec& e, Trace& trace, auto&& f) {
    const Phase phase(e, trace);
    f(e);
  };
  const auto passes = [&](Exec& e, uint32_t steps) {
    pass(e, state, [&](Exec& x) { moments.allocate(x); });
    for (uint32_t t = 1; t <= steps; ++t) {
      const std::vector<float> grads = optim_gradient(n, 7, t);
      pass(e, update, [&](Exec& x) { moments.update(x, hyper(t), out.params, grads); });
    }
    pass(e, save, [&](Exec& x) { moments.save(x, take); });
  };
  out.params = optim_params(n, 7);
  {
    Exec rehearsal = Exec::rehearsal(threads);
    passes(rehearsal, 1);
    moments.forget();
  }
  state.lay_out();
  for (Trace* t : {&update, &save}) {
    t->lay_out();
    t->base = state.bytes;
  }
  const Arena arena(state.bytes + std::max(update.bytes, save.bytes));
  Exec exec({DeviceKind::cpu, 0}, threads, arena.data());
  moments.connect({&update, &save});
  passes(exec, 3);
  moments.forget();
  return out;
}

template <class T>
std::vector<T> typed(const std::vector<std::byte>& bytes) {
  std::vector<T> out(bytes.size() / sizeof(T));
  std::memcpy(out.data(), bytes.data(), bytes.size());
  return out;
}

class MomentsTest : public ::testing::Test {
 protected:
  std::shared_ptr<const Model> model = load_golden("llama");
  AdapterLayout layout = layout_of_rank(model->desc(), 32);

  using Open = decltype(Moments::Paging::open);
  // A paged one's moments are in a file, or where `open` says.
  std::unique_ptr<Engine> engine_with(OptimizerKind kind, Open open = {}) const {
    const Batch b = batch_of("models/llama/train.jsonl", {0});
    EngineOptions options;
    options.train = maxima_of({&b, 1});
    options.optimizer = kind;
    options.paging = {100000, 2, true, std::filesystem::temp_directory_path().string(), std::move(open)};
    auto engine = std::make_unique<Engine>(model, layout, options);
    engine->reserve();
    return engine;
  }
};

// Tensor by tensor: the definition on blocks of each A and B of 4096 elements or more, 32-bit AdamW on the
// others.
TEST_F(MomentsTest, EightBitsForEachTensorByItsSize) {
  const auto n = static_cast<uint32_t>(layout.size());
  std::vector<float> params = optim_params(n, 7), absmax1, absmax2, moment1, moment2;
  std::vector<uint8_t> codes1, codes2;
  std::vector<std::pair<int64_t, int64_t>> tensors;
  for (const LoraModule& m : layout.modules()) {
    tensors.emplace_back(m.a, 32 * m.in);
    tensors.emplace_back(m.b, 32 * m.out);
  }
  std::sort(tensors.begin(), tensors.end());
  for (const auto& [first, count] : tensors) {
    std::vector<uint8_t> m8(static_cast<size_t>(count)), v8(m8);
    std::vector<float> m(m8.size()), v(m8.size()), am(m8.size() / kBlock8), av(am);
    ASSERT_EQ(count % kBlock8, 0);
    for (uint32_t t = 1; t <= 3; ++t) {
      const std::vector<float> all = optim_gradient(n, 7, t);
      const auto at = static_cast<size_t>(first);
      if (count < 4096)
        run_planned(1, [&](Exec& e) {
          adamw(e, hyper(t), std::span(params).subspan(at, m.size()), std::span(all).subspan(at, m.size()), m,
                v);
        });
      else
        for (size_t i = 0; i < m8.size(); i += kBlock8)
          ref::adamw8bit_block<float>(hyper(t), &params[at + i], &all[at + i], &m8[i], &v8[i],
                                      am[i / kBlock8], av[i / kBlock8], kBlock8);
    }
    const auto append = [](auto& to, const auto& from) { to.insert(to.end(), from.begin(), from.end()); };
    if (count < 4096)
      append(moment1, m), append(moment2, v);
    else
      append(codes1, m8), append(codes2, v8), append(absmax1, am), append(absmax2, av);
  }
  ASSERT_GT(moment1.size(), 0u);
  const Stepped got = run_moments(layout, OptimizerKind::adamw_8bit);
  EXPECT_EQ(got.params, params);
  EXPECT_EQ(typed<uint8_t>(got.parts.at(MomentPart::codes1)), codes1);
  EXPECT_EQ(typed<uint8_t>(got.parts.at(MomentPart::codes2)), codes2);
  EXPECT_EQ(typed<float>(got.parts.at(MomentPart::absmax1)), absmax1);
  EXPECT_EQ(typed<float>(got.parts.at(MomentPart::absmax2)), absmax2);
  EXPECT_EQ(typed<float>(got.parts.at(MomentPart::moment1)), moment1);
  EXPECT_EQ(typed<float>(got.parts.at(MomentPart::moment2)), moment2);
  const Moments moments(layout, OptimizerKind::adamw_8bit, {});
  EXPECT_EQ(moments.parts().size(), 6u);
  EXPECT_EQ(moments.elements(MomentPart::codes1), static_cast<int64_t>(codes1.size()));
  // Two codes a parameter and two scales a block; slices are aligned.
  const size_t exact = 2 * codes1.size() + 8 * (absmax1.size() + moment1.size());
  EXPECT_GE(moments.bytes(), exact);
  EXPECT_LT(moments.bytes(), exact + kMomentParts * Trace::kAlign);
}

// In memory or elsewhere, late, out of order and poisoned in between.
TEST_F(MomentsTest, PagesSlotsAndThreadsLeaveEveryBit) {
  const test::TempFolder folder;
  for (const auto& [plain, paged] : {std::pair(OptimizerKind::adamw, OptimizerKind::paged_adamw_32bit),
                                     {OptimizerKind::adamw_8bit, OptimizerKind::paged_adamw_8bit}}) {
    const Stepped want = run_moments(layout, plain, {}, 1);
    // Of one run each, of several, of more than there is.
    for (const size_t page_bytes : {size_t{1}, size_t{100000}, size_t{1} << 30})
      for (const uint64_t seed : {0, 1, 2, 3}) {
        SCOPED_TRACE(cat(kOptimizerNames[static_cast<size_t>(paged)], " ", page_bytes, " ", seed));
        Moments::Paging paging;
        paging.page_bytes = page_bytes;
        paging.slots = 1 + static_cast<int>(seed);
        paging.always = seed > 0;
        paging.folder = folder.path();
        if (seed > 1)
          paging.open = [seed = seed](uint32_t pages, size_t bytes, int slots) {
            return std::make_unique<CheckingPages>(pages, bytes, slots, CheckingPages::Options{.seed = seed});
          };
        const Stepped got = run_moments(layout, paged, paging, 3);
        EXPECT_EQ(got.params, want.params);
        EXPECT_TRUE(got.parts == want.parts);
      }
  }
}

TEST_F(MomentsTest, OnlyPagedOptimizersLeaveMemory) {
  for (const OptimizerKind kind : {OptimizerKind::adamw, OptimizerKind::adamw_8bit, OptimizerKind::sgd})
    EXPECT_THROW(Moments(layout, kind, {}).keep_in_memory(false), Error);
}

TEST_F(MomentsTest, CheckpointsHoldThemToTheByte) {
  const test::TempFolder folder;
  const CheckpointStore store(folder.path(), {}, [](const std::string&) {});
  const auto read = [](const std::string&, std::span<float>) {};
  for (const OptimizerKind kind : {OptimizerKind::adamw_8bit, OptimizerKind::paged_adamw_8bit}) {
    const auto engine = engine_with(kind);
    uint8_t next = 1;
    engine->load_moments([&](MomentPart, size_t, std::span<std::byte> bytes) {
      for (std::byte& byte : bytes) byte = static_cast<std::byte>(next = static_cast<uint8_t>(next * 5 + 3));
    });
    const std::vector<std::byte> want = moments_of(*engine);
    store.save({}, *engine);
    const auto found = CheckpointStore::open(folder / "checkpoint-0");
    const auto other = engine_with(kind);
    store.load(found, 0, read, *other);
    EXPECT_TRUE(moments_of(*other) == want);
    for (const OptimizerKind other_kind : {OptimizerKind::adamw, OptimizerKind::sgd}) {
      const auto stranger = engine_with(other_kind);
      EXPECT_THROW(store.load(found, 0, read, *stranger), Error);
    }
  }
}

// Whichever transfer fails, the step or the save ends in an error, and the checkpoint before it is whole.
TEST_F(MomentsTest, FaultsLeaveTheLastCheckpoint) {
  const test::TempFolder folder;
  const CheckpointStore store(folder.path(), {}, [](const std::string&) {});
  store.save({}, *engine_with(OptimizerKind::paged_adamw_8bit));
  const std::string before = read_file(folder / "checkpoint-0/optimizer.safetensors", size_t{1} << 30);
  const CheckingPages* pages = nullptr;
  // A step and its checkpoint: transfers that it took, or -1 when it failed.
  const auto transfers_of = [&](int64_t transfer) {
    const auto engine = engine_with(
        OptimizerKind::paged_adamw_8bit, [&pages, transfer](uint32_t count, size_t bytes, int slots) {
          auto b = std::make_unique<CheckingPages>(count, bytes, slots,
                                                   CheckingPages::Options{.seed = 1, .fail_at = transfer});
          pages = b.get();
          return b;
        });
    RunState state;
    state.step = 1;
    try {
      engine->update(hyper(1));
      store.save(state, *engine);
    } catch (const Error& e) {
      EXPECT_EQ(e.category(), Category::io) << e.what();
      return int64_t{-1};
    }
    return pages->started();
  };
  const int64_t transfers = transfers_of(-1);
  ASSERT_GT(transfers, 8);
  std::filesystem::remove_all(folder / "checkpoint-1");
  for (int64_t transfer = 0; transfer < transfers; transfer += 3) {
    EXPECT_LT(transfers_of(transfer), 0) << transfer;
    const auto found = store.newest([](const std::string& line) { ADD_FAILURE() << line; });
    ASSERT_TRUE(found);
    EXPECT_EQ(found->state.step, 0) << transfer;
  }
  EXPECT_EQ(read_file(folder / "checkpoint-0/optimizer.safetensors", size_t{1} << 30), before);
}

// Memory that has no room for the moments and all else sends a paged optimizer's away, and only those.
TEST_F(MomentsTest, LeaveMemoryWhenItHasNoRoom) {
  const Batch b = batch_of("models/llama/train.jsonl", {0});
  EngineOptions options;
  options.train = maxima_of({&b, 1});
  options.optimizer = OptimizerKind::paged_adamw_32bit;
  options.checkpointing = Checkpointing::none;
  options.paging.page_bytes = 100000;
  options.paging.slots = 2;
  options.process_bytes = 1 << 20;
  const Engine roomy(model, layout, options);
  EXPECT_TRUE(roomy.moments().in_memory());
  // Less than the plain optimizer needs, whose moments pass through no slots.
  options.optimizer = OptimizerKind::adamw;
  options.memory_budget = Engine(model, layout, options).plan().total_bytes - 100000;
  options.optimizer = OptimizerKind::paged_adamw_32bit;
  const Engine tight(model, layout, options);
  EXPECT_FALSE(tight.moments().in_memory());
  EXPECT_LE(tight.plan().total_bytes, *options.memory_budget);
  const auto row = [](const Engine& e) {
    for (const PlanRegion& r : e.plan().regions)
      if (r.name == "moments") return cat(r.bytes, ": ", r.why);
    return std::string();
  };
  EXPECT_EQ(row(roomy).rfind(cat(roomy.moments().bytes(), ": two, fp32"), 0), 0u) << row(roomy);
  EXPECT_EQ(row(tight).rfind("0: two, fp32", 0), 0u) << row(tight);
  EXPECT_NE(row(tight).find("in a file"), std::string::npos) << row(tight);
  options.optimizer = OptimizerKind::adamw;
  options.must_fit = false;
  EXPECT_TRUE(Engine(model, layout, options).moments().in_memory());
}

}  // namespace
}  // namespace qlora::testing
