// Evaluation and generation on a CUDA device, emulated, against the CPU's: numbers within their types'
// bounds, answers that hang on nothing beside them, memory as planned.
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/cuda/emulator.h"
#include "memory/cuda/emulated.h"
#include "model/generate.h"
#include "tests/support/random_llama.h"
#include "tests/train/llama_fixture.h"
#include "train/evaluator.h"

namespace qlora::testing {
namespace {

using Ids = std::vector<int32_t>;

constexpr int32_t kVocab = 99;  // logits of one row begin on 16 bytes, those of the next do not

// Two layers; query heads share key heads.
std::shared_ptr<const Model> model_with(bool tied) {
  return test::random_nf4_llama({2, 64, 96, 4, 2, kVocab, tied}, .2f);
}

Ids prompt(size_t length, int32_t first) {
  Ids ids(length);
  for (size_t i = 0; i < length; ++i) ids[i] = (first + static_cast<int32_t>(i * i) * 7) % kVocab;
  return ids;
}

// These documents; every token but a document's first has loss.
Batch batch_of(const std::vector<Ids>& documents) {
  Batch b;
  b.cu_seqlens = {0};
  for (const Ids& d : documents) {
    for (size_t i = 0; i < d.size(); ++i) {
      const bool label = i + 1 < d.size();
      if (label) b.loss_rows.push_back(static_cast<int32_t>(b.tokens()));
      b.places.push_back(i);
      b.ids.push_back(d[i]);
      b.targets.push_back(label ? d[i + 1] : -1);
      b.positions.push_back(static_cast<int32_t>(i));
    }
    b.cu_seqlens.push_back(static_cast<int32_t>(b.tokens()));
  }
  return b;
}

double largest(const std::vector<float>& v) {
  double most = 0;
  for (const float x : v) most = std::max<double>(most, std::abs(x));
  return most;
}
double farthest(const std::vector<float>& a, const std::vector<float>& b) {
  double most = 0;
  for (size_t i = 0; i < a.size(); ++i) most = std::max<double>(most, std::abs(double{a[i]} - b[i]));
  return most;
}

class CudaGenerate : public ::testing::TestWithParam<bool> {
 protected:
  // A device of which the host reaches nothing, and which reaches nothing of the host's.
  void SetUp() override {
    cuda::emulate({.apart = true});
    cuda::emulator::variant = 0;
    take(model_with(GetParam()));
  }
  void TearDown() override {
    model.reset();
    cuda::emulate({});
  }
  void take(std::shared_ptr<const Model> m) {
    model = std::move(m);
    layout = layout_of_rank(model->desc(), 4);
    params.resize(static_cast<size_t>(layout.size()));
    layout.initialize(1, params);
    for (size_t i = 0; i < params.size(); ++i)  // B too: an adapter that does something
      if (params[i] == 0) params[i] = .02f * (static_cast<float>(i * 37 % 11) - 5);
  }
  AdapterView adapter() const { return {&layout, params.data(), nullptr}; }
  RunDevice card(DType compute) const { return RunDevice::with_copy(0, *model, compute, 2); }

  struct Evaluated {
    LossSum sum;
    std::vector<float> logits;  // of all rows
  };
  Evaluated evaluated(const std::vector<Ids>& documents, DType compute, const RunDevice& on) const {
    const Batch b = batch_of(documents);
    BatchMaxima most = maxima_of({&b, 1});
    most.loss_rows = std::max<int64_t>(most.loss_rows, 1);  // one token has none
    Evaluator evaluator(model, {compute, DType::f32}, adapter(), most, on);
    Evaluated out;
    out.sum = evaluator.evaluate(b);
    evaluator.for_logits(b, [&](int64_t first, const ConstMat& part) {
      EXPECT_EQ(static_cast<size_t>(first * part.cols), out.logits.size());
      out.logits.insert(out.logits.end(), part.row<float>(0), part.row<float>(0) + part.rows * part.cols);
    });
    EXPECT_EQ(out.logits.size(), b.ids.size() * vocab());
    return out;
  }
  // The CPU's logits after the last of `ids`.
  std::vector<float> after(const Ids& ids, DType compute) const {
    std::vector<float> all = evaluated({ids}, compute, 1).logits;
    return {all.end() - static_cast<std::ptrdiff_t>(vocab()), all.end()};
  }
  size_t vocab() const { return static_cast<size_t>(model->desc().vocab); }
  // Every token that is drawn is the likeliest of a whole pass of the CPU's in fp32, or as likely as the
  // error of both allows.
  void expect_likeliest(DType compute, const std::vector<Generator::Request>& requests) const {
    Generator generator(model, {compute, DType::f32}, adapter(), {2, 24}, card(compute));
    const auto answers = generator.run(requests, {}, {}, 0);
    double bound = 0;
    for (size_t r = 0; r < requests.size(); ++r) {
      ASSERT_EQ(static_cast<int64_t>(answers[r].size()), requests[r].max_new);
      Ids ids = requests[r].prompt;
      for (const int32_t id : answers[r]) {
        const std::vector<float> l = after(ids, DType::f32);
        bound = std::max(
            bound, compute == DType::f32 ? 2 * 2e-5 * largest(l) : 2 * farthest(after(ids, compute), l));
        EXPECT_GE(l[static_cast<size_t>(id)], *std::max_element(l.begin(), l.end()) - 2 * bound)
            << ids.size();
        ids.push_back(id);
      }
    }
  }

  std::shared_ptr<const Model> model;
  AdapterLayout layout;
  std::vector<float> params;
};

// fp32: sums alone are added in other orders (tests/golden/models/README.md: 8 times a fixture's distance
// from fp64, on either side). bf16: roundings are other draws of the same size: at most twice as far from
// fp32 as the CPU's, a loss, which is one draw, within the fixtures' bound.
TEST_P(CudaGenerate, EvaluatesAsTheCpuDoes) {
  const std::vector<Ids> documents = {prompt(1, 4), prompt(17, 5), prompt(2, 90), prompt(9, 33)};
  const Evaluated want = evaluated(documents, DType::f32, 1), near = evaluated(documents, DType::bf16, 1);
  const Evaluated got = evaluated(documents, DType::f32, card(DType::f32));
  EXPECT_EQ(got.sum.tokens, want.sum.tokens);
  EXPECT_NEAR(got.sum.loss / want.sum.loss, 1, 2e-6);
  EXPECT_EQ(got.sum.hits, want.sum.hits);
  EXPECT_LE(farthest(got.logits, want.logits), 2 * 2e-5 * largest(want.logits));
  cuda::emulate({.seed = 3});  // streams run as they like
  const Evaluated far = evaluated(documents, DType::bf16, card(DType::bf16));
  EXPECT_NEAR(far.sum.loss / want.sum.loss, 1, 2 * 1.27e-3);
  EXPECT_LE(farthest(far.logits, want.logits), 2 * farthest(near.logits, want.logits));
}

TEST_P(CudaGenerate, GreedyIsTheArgmaxOfTheCpusPasses) {
  const std::vector<Generator::Request> requests{{prompt(6, 3), 4}, {prompt(11, 77), 3}, {prompt(1, 50), 3}};
  expect_likeliest(DType::f32, requests);
  cuda::emulate({.seed = 5});
  expect_likeliest(DType::bf16, requests);
}

// Weights of 16 bits, which a step decodes as it multiplies; norms of heads, and biases.
TEST_P(CudaGenerate, OtherFamilies) {
  take(load_golden(GetParam() ? "llama_bias_tied" : "qwen3"));
  expect_likeliest(DType::bf16, {{prompt(5, 3), 2}});
}

// By bf16, whose products are picked by shapes: what runs beside a request changes nothing, drawn or greedy,
// nor do streams that run as they like, or the emulator's order. A seed does.
TEST_P(CudaGenerate, AnswersDoNotHangOnSlots) {
  const RunDevice on = card(DType::bf16);
  std::vector<Generator::Request> requests;
  for (int i = 0; i < 3; ++i) requests.push_back({prompt(2 + static_cast<size_t>(i) * 3, i * 31), 2 + i % 2});
  Sampling drawn;
  drawn.greedy = false;
  drawn.temperature = 2;
  const auto run = [&](int slots, uint64_t seed) {
    Generator generator(model, Numerics{}, adapter(), {slots, 16}, on);
    return generator.run(requests, drawn, {}, seed);
  };
  const auto alone = run(1, 7);
  cuda::emulator::variant = 3;
  EXPECT_EQ(run(3, 7), alone);
  cuda::emulate({.seed = 11});
  EXPECT_EQ(run(2, 7), alone);
  EXPECT_NE(run(3, 8), alone);
}

// The cache is in the plan, and the plan is what is asked of the card.
TEST_P(CudaGenerate, EmulatedMemoryIsThePlans) {
  const auto taken = [before = cuda::device_info(0).free_bytes] {
    return before - cuda::device_info(0).free_bytes;
  };
  const RunDevice on = card(DType::bf16);
  EXPECT_EQ(taken(), on.weights->bytes());
  {
    Generator generator(model, Numerics{}, adapter(), {3, 20}, on);
    EXPECT_EQ(taken(), on.weights->bytes()) << "reserved before it runs";
    // Keys and values of two layers: three slots of 20 rows of 2 heads of 16 in bf16.
    EXPECT_EQ(generator.cache_bytes(), size_t{2 * 2 * 3 * 20 * 2 * 16 * 2});
    generator.run(std::vector<Generator::Request>{{prompt(3, 1), 2}}, {}, {}, 0);
    EXPECT_EQ(taken(), on.weights->bytes() + generator.bytes());
    EXPECT_GE(generator.bytes(), generator.cache_bytes() + params.size() * sizeof(float));
  }
  EXPECT_EQ(taken(), on.weights->bytes());
  const Batch b = batch_of({prompt(9, 2)});
  const Evaluator evaluator(model, Numerics{}, adapter(), maxima_of({&b, 1}), on);
  EXPECT_EQ(taken(), on.weights->bytes() + evaluator.bytes());
}

// Fewer slots where the card has no room for all, and the same answers.
TEST_P(CudaGenerate, EmulatedAsManySlotsAsFit) {
  const RunDevice on = card(DType::bf16);
  const auto made = [&](size_t free) {
    cuda::emulate({.device_bytes = on.weights->bytes() + free});
    return Generator::fitting(model, Numerics{}, adapter(), {5, 20}, on);
  };
  const size_t all = made(SIZE_MAX / 2)->bytes(), one = made(0)->bytes();
  EXPECT_EQ(made(all)->slots(), 5);
  EXPECT_EQ(made(all - 1)->slots(), 3);
  EXPECT_EQ(made(one)->slots(), 1);
  EXPECT_EQ(made(0)->slots(), 1) << "one is tried in any case";
}

TEST_P(CudaGenerate, EmulatedNoRoomIsSaidWithItsBytes) {
  const RunDevice on = card(DType::bf16);
  const auto refused = [&](const cuda::EmulatedDevice& device) {
    Generator generator(model, Numerics{}, adapter(), {1, 20}, on);
    cuda::emulate(device);
    try {
      generator.run(std::vector<Generator::Request>{{prompt(3, 1), 2}}, {}, {}, 0);
    } catch (const Error& e) {
      EXPECT_EQ(e.category(), Category::memory);
      return std::string(e.what());
    }
    return std::string("nothing");
  };
  EXPECT_NE(refused({.device_bytes = on.weights->bytes() + 100}).find("bytes of activations and caches"),
            std::string::npos);
  EXPECT_NE(refused({.pinned_bytes = 1 << 8}).find("pinned memory"), std::string::npos);
}

INSTANTIATE_TEST_SUITE_P(Embedding, CudaGenerate, ::testing::Bool(),
                         [](const auto& info) { return std::string(info.param ? "tied" : "untied"); });

}  // namespace
}  // namespace qlora::testing
