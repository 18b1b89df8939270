// The training pass as a whole on tiny models: dropout's gradient is the slope of the loss, and nothing but
// time and memory hangs on what is kept, on tiles, on batching or on threads.
#include <gtest/gtest.h>

#include <cmath>

#include "memory/random.h"
#include "tests/support/run_op.h"
#include "tests/train/llama_fixture.h"
#include "train/largest_batch.h"

namespace qlora::testing {
namespace {

constexpr DropoutKey kDropout{17, 5, 0, .3f};

// One bit a choice.
SavePolicy policy_of(uint64_t bits) {
  SavePolicy p;
  SavePolicy::for_each_choice(p, [&](const char*, Keep& k) {
    if ((bits & 1) == 0) k = Keep::recompute;
    bits >>= 1;
  });
  return p;
}

struct Passed {
  LossSum sum;
  std::vector<float> grads;
};

class DecoderTest : public ::testing::TestWithParam<const char*> {
 protected:
  static Batch docs(const std::vector<size_t>& rows) {
    return batch_of(std::string("models/") + GetParam() + "/docs.jsonl", rows);
  }
  Passed pass(const Batch& b, const DropoutKey& dropout, const std::vector<float>& params, double scale,
              const SavePolicy& policy = {}, int threads = 2) const {
    return pass(b, dropout, params, scale,
                std::vector<SavePolicy>(static_cast<size_t>(model->block_count()), policy), threads);
  }
  Passed pass(const Batch& b, const DropoutKey& dropout, const std::vector<float>& params, double scale,
              const std::vector<SavePolicy>& policies, int threads) const {
    Decoder decoder(model, numerics, limits_of(maxima_of({&b, 1})));
    decoder.set_logits_bytes(logits_bytes);
    std::vector<int32_t> targets;
    Passed out;
    out.grads.resize(params.size());
    run_planned(threads, [&](Exec& e) {
      out.sum = decoder.train(e, token_batch(b, targets), {&adapter.layout, params.data(), out.grads.data()},
                              policies, dropout, static_cast<float>(scale));
    });
    return out;
  }
  Passed pass(const Batch& b, const DropoutKey& dropout, double scale = 1, const SavePolicy& policy = {},
              int threads = 2) const {
    return pass(b, dropout, adapter.params, scale, policy, threads);
  }

  std::shared_ptr<const Model> model = load_golden(GetParam());
  GoldenAdapter adapter{model->desc(), std::string(GetParam()) + "/adapter"};
  Numerics numerics{DType::f32, DType::f32};
  int64_t logits_bytes = Decoder::kLogitsBytes;
};

// The A's of one kind of linear, and its B's, along their own gradient: the loss must rise as steeply as the
// gradient is long. The slope's error: the curvature, seen where twice the way gives another slope (3 times
// the nearer one's error), and the loss's own 2e-6 (llama_test.cc) over the way.
TEST_P(DecoderTest, DropoutGradientIsTheSlopeOfTheLoss) {
  const Batch b = docs({0, 1, 2});
  const double scale = 1.0 / static_cast<double>(b.loss_rows.size());
  const Passed here = pass(b, kDropout, scale);
  for (int kind = 0; kind < kLinears; ++kind)
    for (bool a : {true, false}) {
      std::vector<float> direction(here.grads.size());
      for (const LoraModule& m : adapter.layout.modules())
        if (m.kind == static_cast<LinearKind>(kind)) {
          const int64_t first = a ? m.a : m.b, count = m.rank * (a ? m.in : m.out);
          std::copy_n(here.grads.begin() + first, count, direction.begin() + first);
        }
      double length = 0;
      for (float g : direction) length += static_cast<double>(g) * g;
      length = std::sqrt(length);
      const auto loss_at = [&](double step) {
        std::vector<float> params = adapter.params;
        for (size_t i = 0; i < params.size(); ++i)
          params[i] += static_cast<float>(step * direction[i] / length);
        return pass(b, kDropout, params, scale, SavePolicy{}, 1).sum.loss * scale;
      };
      const double way = .04;
      const double near = (loss_at(way) - loss_at(-way)) / (2 * way),
                   far = (loss_at(2 * way) - loss_at(-2 * way)) / (4 * way),
                   error = std::abs(far - near) + 2 * 2e-6 * here.sum.loss * scale / way;
      EXPECT_NEAR(length, near, error) << linear_name(0, static_cast<LinearKind>(kind)) << (a ? " A" : " B");
      EXPECT_GT(length, 10 * error) << "proves too little";
    }
}

// A token's mask is a function of its place: documents alone or together, the same loss to the bit.
TEST_P(DecoderTest, DropoutIsTheSameUnderAnyBatching) {
  const double together = pass(docs({2, 0, 1}), kDropout).sum.loss;
  double alone = 0;
  for (size_t row : {2, 0, 1}) alone += pass(docs({row}), kDropout).sum.loss;
  EXPECT_DOUBLE_EQ(together, alone);
  const Batch b = docs({2, 0, 1});
  DropoutKey other = kDropout;
  other.step = 6;
  EXPECT_NE(pass(b, other).sum.loss, together);
  other = kDropout, other.seed = 18;
  EXPECT_NE(pass(b, other).sum.loss, together);
  EXPECT_NE(pass(b, {}).sum.loss, together);
}

// Any subset of the saved fields, with dropout: the bits of keeping everything.
TEST_P(DecoderTest, AnyPolicyGivesTheSameBits) {
  const Batch b = docs({0, 1, 2});
  for (const DropoutKey& dropout : {DropoutKey{}, kDropout}) {
    const Passed kept = pass(b, dropout);
    for (int bits = 0; bits < 15; ++bits) {
      const SavePolicy policy = policy_of(bits);
      const Passed again = pass(b, dropout, 1, policy);
      EXPECT_EQ(again.sum.loss, kept.sum.loss) << bits;
      EXPECT_EQ(again.grads, kept.grads) << bits;
    }
  }
}

// And any mixture over the blocks; with 16 bits what is stored is rounded.
TEST_P(DecoderTest, AnyMixtureGivesTheSameBits) {
  numerics.compute = DType::bf16;
  const Batch b = docs({0, 1, 2});
  const Passed kept = pass(b, kDropout);
  for (uint64_t draw = 0; draw < 16; ++draw) {
    std::vector<SavePolicy> policies;
    for (int i = 0; i < model->block_count(); ++i)
      policies.push_back(policy_of(random_bits(draw, static_cast<uint64_t>(i)) & 15));
    const Passed mixed = pass(b, kDropout, adapter.params, 1, policies, 2);
    EXPECT_EQ(mixed.sum.loss, kept.sum.loss) << draw;
    EXPECT_EQ(mixed.grads, kept.grads) << draw;
  }
}

TEST_P(DecoderTest, ThreadsDoNotChangeBits) {
  const Batch b = docs({0, 1, 2});
  const Passed two = pass(b, kDropout);
  for (int threads : {1, 3}) EXPECT_EQ(pass(b, kDropout, 1, {}, threads).grads, two.grads) << threads;
}

// More rows than a tile of the blocks (512) and than a chunk of the loss (256): twelve copies of the same
// documents are twelve times the loss and the gradient of one. Gradients: two results, each within the bound
// that LlamaTest grounds for this model.
TEST_P(DecoderTest, WidthOfLogitsChangesNoBit) {
  const Batch b = docs({0, 1, 2});
  ASSERT_GT(b.loss_rows.size(), 16u) << "one chunk proves nothing";
  for (const DType dtype : {DType::f32, DType::bf16}) {
    numerics.compute = dtype;
    logits_bytes = Decoder::kLogitsBytes;
    const Passed wide = pass(b, kDropout);
    logits_bytes = 16 * 4 * model->desc().vocab;  // 16 rows
    const Passed narrow = pass(b, kDropout);
    EXPECT_EQ(narrow.sum.loss, wide.sum.loss);
    EXPECT_EQ(narrow.grads, wide.grads);
  }
}

TEST_P(DecoderTest, TilesAndChunksAddUp) {
  const Batch one = docs({0, 1, 2});
  std::vector<size_t> rows;
  for (int i = 0; i < 12; ++i) rows.insert(rows.end(), {0, 1, 2});
  const Batch many = docs(rows);
  ASSERT_GT(many.tokens(), 512);
  ASSERT_GT(many.loss_rows.size(), 256u);
  for (const SavePolicy& policy : {SavePolicy{}, SavePolicy::all(Keep::recompute)}) {
    const Passed single = pass(one, kDropout, 1, policy), all = pass(many, kDropout, 1, policy);
    EXPECT_NEAR(all.sum.loss / (12 * single.sum.loss), 1, 1e-12);
    EXPECT_EQ(all.sum.tokens, 12 * single.sum.tokens);
    EXPECT_EQ(all.sum.hits, 12 * single.sum.hits);
    for (const LoraModule& m : adapter.layout.modules())
      for (bool a : {true, false}) {
        std::vector<double> want = part(single.grads, m, a);
        for (double& v : want) v *= 12;
        EXPECT_LE(worst(part(all.grads, m, a), want), 2 * 8 * 5.2e-6) << peft_key(m, a);
      }
  }
}

// Gradients are added to what is there, and scale with the factor of the loss.
TEST_P(DecoderTest, GradientsAddUpAndScale) {
  const Batch b = docs({0, 1, 2});
  const auto engine_grads = [&](int passes, float scale) {
    EngineOptions options;
    options.numerics = numerics;
    options.threads = 2;
    options.train = maxima_of({&b, 1});
    Engine engine(model, adapter.layout, options);
    engine.reserve();
    set_params(engine, adapter.params);
    engine.zero_grads();
    for (int i = 0; i < passes; ++i) engine.train(b, {}, scale);
    return std::vector<double>(engine.grads().begin(), engine.grads().end());
  };
  const std::vector<double> once = engine_grads(1, 1), twice = engine_grads(2, 1),
                            half = engine_grads(1, .5f);
  std::vector<double> doubled = once, halved = once;
  for (double& v : doubled) v *= 2;
  for (double& v : halved) v *= .5;
  EXPECT_EQ(half, halved);  // powers of two are exact all the way
  EXPECT_EQ(twice, doubled);
}

INSTANTIATE_TEST_SUITE_P(Models, DecoderTest, ::testing::Values("llama", "qwen3"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace qlora::testing
