// What optimizers remember: which tensors have 8 bits, blocks that begin with their tensor, pages that no
// result hangs on, and files of another optimizer.
#include "train/moments.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <map>

#include "kernels/adamw/adamw8bit_ref.h"
#include "memory/file.h"
#include "tests/support/golden.h"
#include "tests/support/optim_numbers.h"
#include "tests/support/run_op.h"
#include "tests/train/llama_fixture.h"
#include "train/checkpoint.h"

namespace qlora::testing {
namespace {

AdamWHyper hyper(int64_t step) { return {1e-2, .9, .95, 1e-8, .1, step, .5f}; }

struct Stepped {
  std::vector<float> params;
  std::map<MomentPart, std::vector<std::byte>> parts;
};

// Three steps from the numbers of tensor 7.
Stepped run_moments(const AdapterLayout& layout, OptimizerKind kind, size_t page_bytes, int threads = 2) {
  const auto n = static_cast<uint32_t>(layout.size());
  Stepped out;
  run_planned(threads, [&](Exec& e) {
    Moments moments(layout, kind, page_bytes);
    moments.allocate(e);
    if (!e.rehearsing())
      moments.load(
          [](MomentPart, size_t, std::span<std::byte> b) { std::fill(b.begin(), b.end(), std::byte{0}); });
    out.params = optim_params(n, 7);
    for (uint32_t t = 1; t <= 3; ++t) moments.update(e, hyper(t), out.params, optim_gradient(n, 7, t));
    if (!e.rehearsing())
      moments.save([&](MomentPart part, std::span<const std::byte> b) {
        out.parts[part].insert(out.parts[part].end(), b.begin(), b.end());
      });
  });
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
  const Stepped got = run_moments(layout, OptimizerKind::adamw_8bit, 0);
  EXPECT_EQ(got.params, params);
  EXPECT_EQ(typed<uint8_t>(got.parts.at(MomentPart::codes1)), codes1);
  EXPECT_EQ(typed<uint8_t>(got.parts.at(MomentPart::codes2)), codes2);
  EXPECT_EQ(typed<float>(got.parts.at(MomentPart::absmax1)), absmax1);
  EXPECT_EQ(typed<float>(got.parts.at(MomentPart::absmax2)), absmax2);
  EXPECT_EQ(typed<float>(got.parts.at(MomentPart::moment1)), moment1);
  EXPECT_EQ(typed<float>(got.parts.at(MomentPart::moment2)), moment2);
  const Moments moments(layout, OptimizerKind::adamw_8bit);
  EXPECT_EQ(moments.parts().size(), 6u);
  EXPECT_EQ(moments.elements(MomentPart::codes1), static_cast<int64_t>(codes1.size()));
  // Two codes a parameter and two scales a block; slices are aligned.
  const size_t exact = 2 * codes1.size() + 8 * (absmax1.size() + moment1.size());
  EXPECT_GE(moments.bytes(), exact);
  EXPECT_LT(moments.bytes(), exact + kMomentParts * Trace::kAlign);
}

TEST_F(MomentsTest, PagesAndThreadsLeaveEveryBit) {
  for (const OptimizerKind kind : {OptimizerKind::adamw, OptimizerKind::adamw_8bit}) {
    const Stepped want = run_moments(layout, kind, 0, 1);
    // Of one run each, of several, of more than there is.
    for (const size_t page_bytes : {size_t{1}, size_t{100000}, size_t{1} << 30}) {
      const Stepped got = run_moments(layout, kind, page_bytes, 3);
      EXPECT_EQ(got.params, want.params) << page_bytes;
      EXPECT_TRUE(got.parts == want.parts) << page_bytes;
    }
  }
}

TEST_F(MomentsTest, CheckpointsHoldThemToTheByte) {
  const Batch b = batch_of("models/llama/train.jsonl", {0});
  const auto engine_with = [&](OptimizerKind kind) {
    EngineOptions options;
    options.train = maxima_of({&b, 1});
    options.optimizer = kind;
    auto engine = std::make_unique<Engine>(model, layout, options);
    engine->reserve();
    return engine;
  };
  const test::TempFolder folder;
  const CheckpointStore store(folder.path(), {}, [](const std::string&) {});
  const auto read = [](const std::string&, std::span<float>) {};
  const auto engine = engine_with(OptimizerKind::adamw_8bit);
  uint8_t next = 1;
  engine->moments().load([&](MomentPart, size_t, std::span<std::byte> bytes) {
    for (std::byte& byte : bytes) byte = static_cast<std::byte>(next = static_cast<uint8_t>(next * 5 + 3));
  });
  const std::vector<std::byte> want = moments_of(*engine);
  store.save({}, *engine);
  const auto found = CheckpointStore::open(folder / "checkpoint-0");
  const auto other = engine_with(OptimizerKind::adamw_8bit);
  store.load(found, 0, read, *other);
  EXPECT_TRUE(moments_of(*other) == want);
  for (const OptimizerKind kind : {OptimizerKind::adamw, OptimizerKind::sgd}) {
    const auto stranger = engine_with(kind);
    EXPECT_THROW(store.load(found, 0, read, *stranger), Error);
  }
}

}  // namespace
}  // namespace qlora::testing
