// The next token's draw: each filter alone, in transformers' order, against probabilities worked out here.
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "model/generate.h"

namespace qlora {
namespace {

// ids by decreasing logit: 2, 4, 0, 3, 1
const std::vector<float> kLogits{1, -2, 3, -1, 2};

int32_t draw(const Sampling& s, double unit, std::vector<int32_t> seen = {}) {
  std::vector<float> logits = kLogits;
  return sample(s, logits, seen, unit);
}

Sampling sampling() {
  Sampling s;
  s.greedy = false;
  return s;
}

// Softmax of the kept ids' logits over the temperature.
std::map<int32_t, double> shares(const std::vector<int32_t>& kept, double temperature = 1) {
  std::map<int32_t, double> p;
  double total = 0;
  for (int32_t id : kept) total += p[id] = std::exp(kLogits[static_cast<size_t>(id)] / temperature);
  for (auto& [id, share] : p) share /= total;
  return p;
}

// The draw, as a function of `unit`, takes the ids in this order, each for its share.
void expect_shares(const Sampling& s, const std::vector<int32_t>& order, const std::map<int32_t, double>& p) {
  double at = 0;
  for (int32_t id : order) {
    const double end = at + p.at(id);
    EXPECT_EQ(draw(s, at + 1e-9), id) << at;
    EXPECT_EQ(draw(s, end - 1e-9), id) << end;
    at = end;
  }
  EXPECT_NEAR(at, 1, 1e-12);
}

TEST(Sample, GreedyTakesTheLargest) {
  EXPECT_EQ(draw({}, .99), 2);
  std::vector<float> ties{1, 5, 5};
  EXPECT_EQ(sample({}, ties, {}, 0), 1);
}

TEST(Sample, TemperatureDividesLogits) {
  Sampling s = sampling();
  expect_shares(s, {2, 4, 0, 3, 1}, shares({2, 4, 0, 3, 1}));
  s.temperature = .5f;
  expect_shares(s, {2, 4, 0, 3, 1}, shares({2, 4, 0, 3, 1}, .5));
}

TEST(Sample, TopKKeepsTheLikeliest) {
  Sampling s = sampling();
  s.top_k = 2;
  expect_shares(s, {2, 4}, shares({2, 4}));
  s.top_k = 9;  // more than there are
  expect_shares(s, {2, 4, 0, 3, 1}, shares({2, 4, 0, 3, 1}));
}

TEST(Sample, TopPKeepsTheShortestHeadThatReachesIt) {
  const auto p = shares({2, 4, 0, 3, 1});
  Sampling s = sampling();
  s.top_p = static_cast<float>(p.at(2) + p.at(4) / 2);
  expect_shares(s, {2, 4}, shares({2, 4}));
  s.top_p = static_cast<float>(p.at(2) / 2);
  expect_shares(s, {2}, shares({2}));
  // Of what top-k left, not of everything: 4's share grows, and the likeliest alone does not reach top_p.
  s.top_k = 2;
  s.top_p = static_cast<float>((p.at(2) + shares({2, 4}).at(2)) / 2);
  expect_shares(s, {2}, shares({2}));
}

TEST(Sample, MinPIsAShareOfTheLikeliest) {
  Sampling s = sampling();
  s.min_p = static_cast<float>(std::exp(-1.5));  // of e^0, e^-1, e^-2, ...
  expect_shares(s, {2, 4}, shares({2, 4}));
  s.min_p = 1;
  expect_shares(s, {2}, shares({2}));
  // After temperature: twice as hot, the gaps are half.
  s.min_p = static_cast<float>(std::exp(-1.25));
  s.temperature = 2;
  expect_shares(s, {2, 4, 0}, shares({2, 4, 0}, 2));
}

// Once an id, however often it was seen; a negative logit moves away from 0.
TEST(Sample, RepetitionPenalty) {
  Sampling s;
  s.repetition_penalty = 2;
  EXPECT_EQ(draw(s, 0, {2, 2}), 4);  // 3 / 2 < 2
  EXPECT_EQ(draw(s, 0, {2, 4}), 2);
  std::vector<float> logits = kLogits;
  const std::vector<int32_t> seen{1, 2, 1};
  sample(s, logits, seen, 0);
  EXPECT_EQ(logits, (std::vector<float>{1, -4, 1.5, -1, 2}));
}

TEST(Sample, LogitsOfAnySize) {
  std::vector<float> logits{1000, 1000, -1000};
  EXPECT_EQ(sample(sampling(), logits, {}, .25), 0);
  EXPECT_EQ(sample(sampling(), logits, {}, .75), 1);
}

}  // namespace
}  // namespace qlora
