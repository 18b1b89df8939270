// Generation with its caches against whole forward passes over the same tokens.
#include "model/generate.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "tests/support/golden_tensors.h"
#include "tests/support/run_op.h"

namespace qlora {
namespace {

using Ids = std::vector<int32_t>;
using Logits = std::vector<float>;

// The golden tests' bound (train/llama_test.cc) on a logit's error over the largest; both sides have one.
constexpr double kBound = 2 * 2e-5;

Ids prompt(size_t length, int32_t first) {
  Ids ids(length);
  for (size_t i = 0; i < length; ++i) ids[i] = (first + static_cast<int32_t>(i * i) * 7) % 256;
  return ids;
}

double largest(const Logits& l) {
  double m = 0;
  for (float v : l) m = std::max<double>(m, std::abs(v));
  return m;
}

class GenerateTest : public ::testing::TestWithParam<const char*> {
 protected:
  GenerateTest() {
    std::vector<LoraChoice> choices;
    for (int b = 0; b < model->block_count(); ++b)
      for (int k = 0; k < kLinears; ++k) choices.push_back({b, static_cast<LinearKind>(k), 4, 2});
    layout = AdapterLayout(model->desc(), choices);
    params.resize(static_cast<size_t>(layout.size()));
    layout.initialize(1, params);
    for (const LoraModule& m : layout.modules())  // B too: an adapter that does something
      for (int64_t i = 0; i < m.out * m.rank; ++i)
        params[static_cast<size_t>(m.b + i)] = .1f * std::sin(static_cast<float>(m.b + i));
  }
  AdapterView adapter() const { return {&layout, params.data(), nullptr}; }

  // Logits after the last of `ids`.
  Logits whole(const Ids& ids, bool adapted = true) const {
    const auto n = static_cast<int64_t>(ids.size());
    const Decoder decoder(model, numerics, {n, 1, n, 0});
    Ids positions(ids.size());
    for (size_t i = 0; i < ids.size(); ++i) positions[i] = static_cast<int32_t>(i);
    const Ids offsets{0, static_cast<int32_t>(n)};
    const std::vector<uint64_t> places(ids.size());
    Logits last;
    testing::run_planned(1, [&](Exec& e) {
      decoder.for_logits(e, {ids, positions, offsets, places, {}, {}}, adapted ? adapter() : AdapterView{},
                         [&](int64_t, const ConstMat& part) {
                           last.assign(part.row<float>(part.rows - 1),
                                       part.row<float>(part.rows - 1) + part.cols);
                         });
    });
    return last;
  }
  // `id` is the likeliest next token, or as likely as its error allows.
  void expect_likeliest(const Ids& before, int32_t id) const {
    const Logits l = whole(before);
    EXPECT_GE(l[static_cast<size_t>(id)], *std::max_element(l.begin(), l.end()) - 2 * kBound * largest(l))
        << before.size();
  }

  std::shared_ptr<const Model> model =
      Model::load(Checkpoint::open(golden::path(std::string("models/") + GetParam())), BaseSpec{}, 2);
  Numerics numerics{DType::f32, DType::f32};
  AdapterLayout layout;
  std::vector<float> params;
};

// Two documents fed in pieces of many and of one token, and of none: after each piece the logits are those of
// a whole pass.
TEST_P(GenerateTest, CachedLogitsAreThoseOfAWholePass) {
  const std::array<Ids, 2> ids{prompt(14, 5), prompt(9, 90)};
  constexpr int64_t kCapacity = 20;
  const int64_t kv = model->desc().blocks[0].kv_dim(), vocab = model->desc().vocab;
  const int blocks = model->block_count();
  std::vector<std::vector<float>> memory(static_cast<size_t>(blocks * 4),
                                         std::vector<float>(static_cast<size_t>(kCapacity * kv), NAN));
  std::vector<KvCache> caches;
  for (size_t i = 0; i < memory.size(); i += 2)
    caches.push_back({Mat(memory[i].data(), kCapacity, kv), Mat(memory[i + 1].data(), kCapacity, kv)});
  const Decoder decoder(model, numerics, {kCapacity, 2, kCapacity, 0});
  std::array<int32_t, 2> past{0, 0};
  for (const std::array<int32_t, 2>& piece :
       {std::array{7, 3}, std::array{0, 4}, std::array{1, 1}, std::array{5, 0}, std::array{1, 1}}) {
    Ids fed, positions, docs{0};
    for (size_t d = 0; d < 2; ++d) {
      for (int32_t i = past[d]; i < past[d] + piece[d]; ++i) {
        fed.push_back(ids[d][static_cast<size_t>(i)]);
        positions.push_back(i);
      }
      docs.push_back(static_cast<int32_t>(fed.size()));
    }
    Logits logits(static_cast<size_t>(2 * vocab), NAN);
    testing::run_planned(2, [&](Exec& e) {
      decoder.infer(e, {fed, positions, docs, past, piece == std::array{1, 1}}, adapter(), caches,
                    Mat(logits.data(), 2, vocab));
    });
    for (size_t d = 0; d < 2; ++d) {
      past[d] += piece[d];
      if (piece[d] == 0) continue;
      const Logits want = whole({ids[d].begin(), ids[d].begin() + past[d]});
      double off = 0;
      for (size_t i = 0; i < want.size(); ++i)
        off = std::max<double>(off, std::abs(logits[d * want.size() + i] - want[i]));
      EXPECT_LE(off, kBound * largest(want)) << d << " after " << past[d];
    }
  }
}

TEST_P(GenerateTest, GreedyIsTheArgmaxOfWholePasses) {
  Generator generator(model, numerics, adapter(), {2, 40, true}, 2);
  const std::vector<Generator::Request> requests{{prompt(6, 3), 8}, {prompt(11, 77), 8}, {prompt(1, 200), 8}};
  const auto answers = generator.run(requests, {}, {}, 0);
  for (size_t r = 0; r < requests.size(); ++r) {
    ASSERT_EQ(answers[r].size(), 8u);
    Ids ids = requests[r].prompt;
    for (int32_t id : answers[r]) {
      expect_likeliest(ids, id);
      ids.push_back(id);
    }
  }
  EXPECT_NE(whole(requests[0].prompt), whole(requests[0].prompt, false)) << "the adapter does nothing";
}

// A prompt longer than what is fed at a time (512).
TEST_P(GenerateTest, LongPromptsGoInPieces) {
  const Ids ids = prompt(530, 3);
  Generator generator(model, numerics, adapter(), {1, 540}, 2);
  const auto answers = generator.run(std::vector<Generator::Request>{{ids, 2}}, {}, {}, 0);
  ASSERT_EQ(answers[0].size(), 2u);
  expect_likeliest(ids, answers[0][0]);
  Ids longer = ids;
  longer.push_back(answers[0][0]);
  expect_likeliest(longer, answers[0][1]);
}

// What runs beside a request changes nothing, drawn or greedy; a seed does. So by either kind of products.
TEST_P(GenerateTest, AnswersDoNotHangOnSlots) {
  std::vector<Generator::Request> requests;
  for (int i = 0; i < 5; ++i) requests.push_back({prompt(3 + static_cast<size_t>(i) * 2, i * 31), 4 + i % 3});
  Sampling drawn;
  drawn.greedy = false;
  drawn.temperature = 2;
  for (const bool few : {false, true}) {
    const auto run = [&](int slots, int threads, const Sampling& s, uint64_t seed) {
      Generator generator(model, numerics, adapter(), {slots, 24, few}, threads);
      return generator.run(requests, s, {}, seed);
    };
    for (const Sampling& s : {Sampling{}, drawn}) {
      const auto alone = run(1, 1, s, 7);
      for (int slots : {2, 3, 5}) EXPECT_EQ(run(slots, 2, s, 7), alone) << slots;
    }
    EXPECT_NE(run(2, 2, drawn, 8), run(2, 2, drawn, 7));
    const std::vector<Generator::Request> all = std::exchange(requests, {requests[0], requests[0]});
    const auto twins = run(1, 1, drawn, 7);
    EXPECT_NE(twins[0], twins[1]) << "each request has a stream of its own";
    requests = all;
  }
}

TEST_P(GenerateTest, WhereAnAnswerEnds) {
  const Ids ids = prompt(6, 3);
  Generator generator(model, numerics, adapter(), {1, 10}, 2);
  const auto answer = [&](int64_t max_new, const Ids& eos, const Generator::OnToken& on_token = {}) {
    return generator.run(std::vector<Generator::Request>{{ids, max_new}}, {}, eos, 0, on_token)[0];
  };
  const Ids all = answer(4, {});
  ASSERT_EQ(all.size(), 4u);
  EXPECT_EQ(answer(0, {}), Ids{});
  EXPECT_EQ(answer(3, {}), Ids(all.begin(), all.begin() + 3));
  EXPECT_EQ(answer(100, {}), all);  // the generator's length
  const size_t first = static_cast<size_t>(std::find(all.begin(), all.end(), all[2]) - all.begin());
  EXPECT_EQ(answer(4, {271, all[2]}), Ids(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(first)));
  Ids handed;
  EXPECT_EQ(answer(4, {},
                   [&](size_t, int32_t id) {
                     handed.push_back(id);
                     return handed.size() < 2;
                   }),
            Ids(all.begin(), all.begin() + 2));
  EXPECT_EQ(handed, Ids(all.begin(), all.begin() + 2));
  for (size_t length : {0, 11}) {
    try {
      generator.run(std::vector<Generator::Request>{{prompt(length, 1), 1}}, {}, {}, 0);
      ADD_FAILURE() << "a prompt of " << length;
    } catch (const Error& e) {
      EXPECT_EQ(e.category(), Category::usage);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Models, GenerateTest, ::testing::Values("llama", "qwen3"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace qlora
