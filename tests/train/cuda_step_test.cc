// Whole steps on a CUDA device, emulated: against the CPU's engine, the same bits whatever is kept, paged or
// resumed, and memory as planned.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <optional>

#include "kernels/cuda/emulator.h"
#include "kernels/gemm/gemm_choice.h"
#include "memory/cuda/emulated.h"
#include "memory/file.h"
#include "tests/support/random_llama.h"
#include "tests/support/temp_folder.h"
#include "tests/train/llama_fixture.h"
#include "train/checkpoint.h"

namespace qlora::testing {
namespace {

constexpr int64_t kVocab = 100;

// Two layers; query heads share key heads.
std::shared_ptr<const Model> model_with(bool tied) {
  return test::random_nf4_llama({2, 64, 96, 4, 2, kVocab, tied}, .2f);
}

// Documents of these lengths; some targets are masked.
Batch documents(const std::vector<int>& lengths) {
  Batch b;
  b.cu_seqlens = {0};
  for (const int n : lengths) {
    for (int i = 0; i < n; ++i) {
      const bool label = i + 1 < n && i % 5 != 3;
      if (label) b.loss_rows.push_back(static_cast<int32_t>(b.tokens()));
      b.places.push_back(static_cast<uint64_t>(b.documents()) << 32 | static_cast<uint64_t>(i));
      b.ids.push_back((i * 7 + n) % kVocab);
      b.targets.push_back(label ? (i * 3 + n) % kVocab : -1);
      b.positions.push_back(i);
    }
    b.cu_seqlens.push_back(static_cast<int32_t>(b.tokens()));
  }
  return b;
}

struct How {
  DeviceKind device = DeviceKind::cuda;
  DType compute = DType::bf16;
  OptimizerKind optimizer = OptimizerKind::adamw;
  int rank = 4;
  Keep keep = Keep::store;
  bool page_moments = false;
  bool poison = false;
  int64_t row_tile = kRowTile;
  std::optional<size_t> budget = {};
};

const std::vector<Batch>& microbatches() {
  static const std::vector<Batch> b = {documents({1, 17, 2, 9}), documents({21}), documents({3, 5})};
  return b;
}

constexpr float kDropout = .05f;

std::unique_ptr<Engine> engine_of(const std::shared_ptr<const Model>& model, const How& how) {
  EngineOptions o;
  o.device = {how.device, 0};
  o.numerics.compute = how.compute;
  o.numerics.row_tile = how.row_tile;
  o.threads = 2;
  o.memory_budget = how.budget;
  o.train = maxima_of(microbatches());
  o.eval = maxima_of({microbatches().data(), 1});
  o.accumulation = static_cast<int64_t>(microbatches().size());
  o.lora_dropout = kDropout;
  o.optimizer = how.optimizer;
  o.paging = {size_t{16} << 10, 2, how.page_moments, {}, {}};
  SavePolicy policy = SavePolicy::all(how.keep);
  o.pinned.assign(static_cast<size_t>(model->block_count()), policy);
  auto engine = std::make_unique<Engine>(model, layout_of_rank(model->desc(), how.rank), o);
  engine->reserve();
  engine->set_poison(how.poison);
  // B is zero at the start of a run: then A would have no gradient.
  engine->set_params([&](std::span<float> p) {
    engine->layout().initialize(7, p);
    for (size_t i = 0; i < p.size(); ++i)
      if (p[i] == 0) p[i] = .02f * (static_cast<float>(i * 37 % 11) - 5);
  });
  return engine;
}

struct Trained {
  std::vector<double> losses, norms;
  std::vector<float> grads, params;  // of the first step; after the last
};

void steps(Engine& engine, int64_t from, int64_t to, size_t batches, Trained& out) {
  for (int64_t n = from; n < to; ++n) {
    engine.zero_grads();
    // All are started before the first loss is read, so that slots have their second turn. A later step takes
    // one: emulation is slow.
    if (n > 0) batches = 1;
    double tokens = 0;
    for (size_t i = 0; i < batches; ++i) tokens += static_cast<double>(microbatches()[i].loss_rows.size());
    for (size_t i = 0; i < batches; ++i)
      engine.start(microbatches()[i], {1, static_cast<uint64_t>(n), 0, kDropout},
                   static_cast<float>(1 / tokens));
    out.norms.push_back(engine.grad_norm());
    const LossSum sum = engine.losses();
    EXPECT_EQ(static_cast<double>(sum.tokens), tokens);
    out.losses.push_back(sum.loss / tokens);
    if (out.grads.empty()) out.grads.assign(engine.grads().begin(), engine.grads().end());
    AdamWHyper h;
    h.lr = 1e-3;
    h.weight_decay = .01;
    h.step = n + 1;
    h.grad_scale = static_cast<float>(std::min(1., 1 / out.norms.back()));
    engine.update(h);
  }
  const std::span<const float> params = engine.params();
  out.params.assign(params.begin(), params.end());
}

Trained trained(const std::shared_ptr<const Model>& model, const How& how, int64_t count, size_t batches) {
  Trained out;
  const auto engine = engine_of(model, how);
  steps(*engine, 0, count, batches, out);
  out.losses.push_back(engine->evaluate(microbatches()[0]).loss);
  return out;
}

double rms(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += std::pow(static_cast<double>(a[i]) - b[i], 2);
  return std::sqrt(sum / static_cast<double>(a.size()));
}

// Share of the largest.
double worst_of(const std::vector<float>& got, const std::vector<float>& want) {
  return worst({got.begin(), got.end()}, {want.begin(), want.end()});
}

class CudaStep : public ::testing::Test {
 protected:
  // A device of which the host reaches nothing, and which reaches nothing of the host's.
  void SetUp() override {
    cuda::emulate({.apart = true});
    cuda::emulator::variant = 0;
  }
  void TearDown() override { cuda::emulate({}); }
};

class CudaStepAgainstCpu : public CudaStep, public ::testing::WithParamInterface<bool> {};

// fp32: sums alone are added in other orders, so both are as far from the exact values as fp32 is, and the
// bounds are those of fixtures of this size (tests/golden/models/README.md: 8 times that distance). bf16:
// roundings are other draws of the same size, so in the mean over all elements at most twice as far from fp32
// as the CPU's, and a loss, which is one draw, within the fixtures' bound.
TEST_P(CudaStepAgainstCpu, LossGradientsAndAdapter) {
  const auto model = model_with(GetParam());
  How cpu, cuda;
  cpu.device = DeviceKind::cpu;
  cpu.compute = cuda.compute = DType::f32;
  const Trained want = trained(model, cpu, 2, 3), got = trained(model, cuda, 2, 3);
  const auto start = engine_of(model, cpu);
  const std::vector<float> first(start->params().begin(), start->params().end());
  for (size_t i = 0; i < want.losses.size(); ++i) EXPECT_NEAR(got.losses[i] / want.losses[i], 1, 2e-6) << i;
  for (size_t i = 0; i < want.norms.size(); ++i) EXPECT_NEAR(got.norms[i] / want.norms[i], 1, 1e-5) << i;
  EXPECT_LE(worst_of(got.grads, want.grads), 3e-5);
  EXPECT_GT(rms(want.params, first), 0);
  EXPECT_LE(rms(got.params, want.params), 1e-2 * rms(want.params, first));

  cuda::emulate({.seed = 3});  // streams run as they like
  cpu.compute = cuda.compute = DType::bf16;
  const Trained near = trained(model, cpu, 2, 3), far = trained(model, cuda, 2, 3);
  for (size_t i = 0; i < want.losses.size(); ++i)
    EXPECT_NEAR(far.losses[i] / want.losses[i], 1, 2 * 1.27e-3) << i;
  EXPECT_LE(rms(far.grads, want.grads), 2 * rms(near.grads, want.grads));
  EXPECT_LE(rms(far.params, want.params), 2 * rms(near.params, want.params));
}

INSTANTIATE_TEST_SUITE_P(Embedding, CudaStepAgainstCpu, ::testing::Bool(),
                         [](const auto& info) { return std::string(info.param ? "tied" : "untied"); });

// The pass may be computed again, its fields and the moments may leave the card, spans may hold anything when
// they are handed out, streams may run as they like.
TEST_F(CudaStep, TheSameBitsHoweverItRuns) {
  const auto model = model_with(false);
  const auto expect_same = [](const Trained& a, const Trained& b) {
    EXPECT_EQ(a.losses, b.losses);
    EXPECT_EQ(a.norms, b.norms);
    EXPECT_EQ(a.grads, b.grads);
    EXPECT_EQ(a.params, b.params);
  };
  const Trained stored = trained(model, {}, 2, 1);
  cuda::emulate({.seed = 5});
  cuda::emulator::variant = 3;
  expect_same(stored, trained(model, {.poison = true}, 2, 1));
  cuda::emulate({.seed = 6, .apart = true});
  expect_same(stored, trained(model, {.keep = Keep::recompute}, 2, 1));
  cuda::emulate({.seed = 7});
  expect_same(stored, trained(model, {.keep = Keep::page, .page_moments = true, .poison = true}, 2, 1));
  // Tensors of 4,096 elements and more have 8 bits.
  const How eight{.optimizer = OptimizerKind::adamw_8bit, .rank = 64};
  How paged = eight;
  paged.page_moments = true;
  expect_same(trained(model, eight, 2, 1), trained(model, paged, 2, 1));
}

// Batches of more rows than a tile, the last one ragged: what one tile gives, but for the order of sums; and
// the same bits however it runs.
TEST_F(CudaStep, RowsGoByTiles) {
  const auto model = model_with(false);
  How tiles{.compute = DType::f32, .row_tile = 8};
  const Trained whole = trained(model, {.compute = DType::f32}, 1, 1), parts = trained(model, tiles, 1, 1);
  EXPECT_NEAR(parts.losses[0] / whole.losses[0], 1, 2e-6);
  EXPECT_LE(worst_of(parts.grads, whole.grads), 3e-5);
  tiles.compute = DType::bf16;
  const Trained stored = trained(model, tiles, 2, 1);
  tiles.keep = Keep::recompute;
  tiles.poison = true;
  const Trained again = trained(model, tiles, 2, 1);
  EXPECT_EQ(stored.grads, again.grads);
  EXPECT_EQ(stored.params, again.params);
}

// Weights decoded beside the products before: the bits of those that are decoded in their turn, whatever is
// kept, as early and as late as the streams' events allow; two panels more, by the plan, where they fit.
TEST_F(CudaStep, DecodesAheadWhereThatFits) {
  set_cuda_gemm(CudaGemm::dequant);  // few rows' weights, too
  const auto model = model_with(false);
  set_decodes_ahead(false);
  const Trained in_turn = trained(model, {}, 2, 1);
  const EnginePlan least = engine_of(model, {})->plan();
  EXPECT_FALSE(least.decodes_ahead);
  set_decodes_ahead(true);
  const auto expect_same = [&](cuda::StreamOrder order, const How& how) {
    cuda::emulate({.seed = 9, .apart = true, .order = order});
    SCOPED_TRACE(cat(name_of(how.keep), ", order ", static_cast<int>(order)));
    const Trained ahead = trained(model, how, 2, 1);
    EXPECT_EQ(ahead.losses, in_turn.losses);
    EXPECT_EQ(ahead.norms, in_turn.norms);
    EXPECT_EQ(ahead.grads, in_turn.grads);
    EXPECT_EQ(ahead.params, in_turn.params);
  };
  expect_same(cuda::StreamOrder::oldest_first, {.poison = true});
  expect_same(cuda::StreamOrder::youngest_first, {.poison = true});
  expect_same(cuda::StreamOrder::youngest_first, {.keep = Keep::page, .page_moments = true, .poison = true});
  expect_same(cuda::StreamOrder::threads, {.keep = Keep::recompute});

  const EnginePlan plan = engine_of(model, {})->plan();
  EXPECT_TRUE(plan.decodes_ahead);
  EXPECT_GT(plan.device_bytes, least.device_bytes);
  EXPECT_TRUE(engine_of(model, {.budget = plan.device_bytes})->plan().decodes_ahead);
  const EnginePlan tight = engine_of(model, {.budget = plan.device_bytes - 1})->plan();
  EXPECT_FALSE(tight.decodes_ahead);
  EXPECT_TRUE(tight.fits);
  EXPECT_EQ(tight.device_bytes, least.device_bytes);
  EXPECT_EQ(tight.choices(), plan.choices()) << "nothing is given up for it";
  expect_same(cuda::StreamOrder::oldest_first, {.poison = true, .budget = plan.device_bytes - 1});
  EXPECT_FALSE(engine_of(model, {.compute = DType::f32})->plan().decodes_ahead) << "nothing is decoded";
  set_cuda_gemm(CudaGemm::by_rows);
}

// Of the data center, others, none.
TEST(RowTile, IsTheMachinesAlone) {
  EXPECT_EQ(row_tile({DeviceKind::cpu, 0}), kRowTile);
  EXPECT_EQ(row_tile({DeviceKind::cuda, 0}), kRowTile) << "the emulated card is of 8.0";
  EXPECT_EQ(row_tile_of("4096"), 4096);
  for (const char* wrong : {"0", "-512", "500", "512x", "", "131072"}) {
    try {
      row_tile_of(wrong);
      ADD_FAILURE() << wrong;
    } catch (const Error& e) {
      EXPECT_EQ(e.category(), Category::usage) << wrong;
    }
  }
}

TEST_F(CudaStep, AResumedRunHasTheSameBits) {
  cuda::emulate({.seed = 11});
  const auto model = model_with(true);
  const How how{.optimizer = OptimizerKind::paged_adamw_8bit, .rank = 64};
  Trained whole, halves;
  const auto straight = engine_of(model, how);
  steps(*straight, 0, 2, 1, whole);
  const test::TempFolder folder;
  Engine* engine = nullptr;
  const CheckpointStore store(folder.path(), {}, [&](const std::string& to) {
    const std::span<const float> p = engine->params();
    write_file(to + "/adapter", std::string(reinterpret_cast<const char*>(p.data()), p.size_bytes()));
  });
  {
    const auto first = engine_of(model, how);
    engine = first.get();
    steps(*first, 0, 1, 1, halves);
    RunState state;
    state.step = 1;
    store.save(state, *first);
  }
  How elsewhere = how;
  elsewhere.page_moments = true;
  const auto second = engine_of(model, elsewhere);
  const auto read = [](const std::string& from, std::span<float> p) {
    const MappedFile file(from + "/adapter");
    ASSERT_EQ(file.size(), p.size_bytes());
    std::memcpy(p.data(), file.data(), file.size());
  };
  store.load(*store.newest([](const std::string& line) { ADD_FAILURE() << line; }), 2, read, *second);
  steps(*second, 1, 2, 1, halves);
  EXPECT_EQ(halves.losses, whole.losses);
  EXPECT_EQ(halves.norms, whole.norms);
  EXPECT_EQ(halves.params, whole.params);
  EXPECT_EQ(moments_of(*second), moments_of(*straight));
}

// What the plan says is what is asked of the device, and what it refuses is said with its bytes.
TEST_F(CudaStep, EmulatedMemoryIsThePlans) {
  size_t arena = 0;
  const auto expect_planned = [&](bool tied) {
    const auto model = model_with(tied);
    const size_t before = cuda::device_info(0).free_bytes;
    const auto engine = engine_of(model, {});
    arena = engine->plan().arena_bytes;
    EXPECT_EQ(before - cuda::device_info(0).free_bytes, engine->plan().device_bytes - kCudaContextBytes);
    return engine->plan().decodes_ahead;
  };
  set_cuda_gemm(CudaGemm::dequant);
  EXPECT_TRUE(expect_planned(false));
  set_cuda_gemm(CudaGemm::by_rows);
  for (const bool tied : {false, true}) expect_planned(tied);
  const auto model = model_with(true);
  const auto refused = [&](const cuda::EmulatedDevice& device) {
    cuda::emulate(device);
    try {
      engine_of(model, {});
    } catch (const Error& e) {
      EXPECT_EQ(e.category(), Category::memory);
      return std::string(e.what());
    }
    return std::string("nothing");
  };
  EXPECT_NE(refused({.device_bytes = 1 << 16}).find("bytes, as planned"), std::string::npos);
  EXPECT_NE(refused({.device_bytes = arena + 100}).find("of frozen weights"), std::string::npos);
  EXPECT_NE(refused({.pinned_bytes = 1 << 10}).find("pinned memory"), std::string::npos);
  EXPECT_NE(refused({.pinned_bytes = size_t{3} << 20}).find("to send weights"), std::string::npos);
}

}  // namespace
}  // namespace qlora::testing
