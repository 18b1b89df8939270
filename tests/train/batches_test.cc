#include "train/data/batches.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <set>

#include "memory/error.h"
#include "train/data/order.h"

namespace qlora {
namespace {

// Samples of the given lengths; token t of sample i is 1000 i + t, so that every token tells where it is
// from. Labels: from a third of the sample on, at least the last token.
Dataset samples(const std::vector<int>& lengths) {
  Dataset data;
  for (size_t i = 0; i < lengths.size(); ++i) {
    std::vector<int32_t> ids(lengths[i]);
    std::vector<uint8_t> mask(lengths[i]);
    for (int t = 0; t < lengths[i]; ++t) {
      ids[t] = static_cast<int32_t>(1000 * i + t);
      mask[t] = t > 0 && t >= lengths[i] / 3;
    }
    data.add(ids, mask, static_cast<uint64_t>(i) << 32);
  }
  return data;
}

std::vector<int> ragged(int n, int longest) {
  OrderRng rng(7, OrderStream::epoch, 0);
  std::vector<int> lengths(n);
  for (int& l : lengths) l = 2 + static_cast<int>(rng.below(longest - 1));
  return lengths;
}

// The samples of a batch, in order, after checking that it says of each document what the data set does.
std::vector<int> check_batch(const Dataset& data, const Batch& b) {
  std::vector<int> seen;
  std::vector<int32_t> loss_rows;
  EXPECT_EQ(b.cu_seqlens.front(), 0);
  EXPECT_EQ(b.cu_seqlens.back(), b.tokens());
  for (int64_t d = 0; d < b.documents(); ++d) {
    const int begin = b.cu_seqlens[d], length = b.cu_seqlens[d + 1] - begin;
    const int sample = b.ids[begin] / 1000;
    seen.push_back(sample);
    EXPECT_EQ(length, data.length(sample));
    for (int t = 0; t < length; ++t) {
      EXPECT_EQ(b.ids[begin + t], 1000 * sample + t);
      EXPECT_EQ(b.positions[begin + t], t);
      EXPECT_EQ(b.places[begin + t], (static_cast<uint64_t>(sample) << 32) + t);
      const bool label = t + 1 < length && data.has_loss(sample)[t + 1];
      EXPECT_EQ(b.targets[begin + t], label ? 1000 * sample + t + 1 : -1);
      if (label) loss_rows.push_back(begin + t);
    }
  }
  EXPECT_EQ(b.loss_rows, loss_rows);
  EXPECT_EQ(b.targets.size(), b.ids.size());
  return seen;
}

// One epoch's samples in the order they come, checked batch by batch.
std::vector<int> epoch_of(const Dataset& data, BatchPlan& plan, int64_t epoch) {
  std::vector<int> seen;
  Step step;
  for (int64_t n = epoch * plan.steps_per_epoch(); n < (epoch + 1) * plan.steps_per_epoch(); ++n) {
    plan.step(n, step);
    int64_t tokens = 0, labels = 0;
    for (const Batch& b : step.microbatches) {
      for (int s : check_batch(data, b)) seen.push_back(s);
      tokens += b.tokens();
      labels += static_cast<int64_t>(b.loss_rows.size());
    }
    EXPECT_EQ(step.tokens, tokens);
    EXPECT_EQ(step.loss_tokens, labels);
    EXPECT_EQ(step.number, n);
    EXPECT_EQ(plan.ends_epoch(n), n + 1 == (epoch + 1) * plan.steps_per_epoch());
  }
  EXPECT_DOUBLE_EQ(step.epoch, static_cast<double>(epoch + 1));
  return seen;
}

struct Mode {
  bool shuffle, packing;
};

class BatchPlanModes : public testing::TestWithParam<Mode> {};
INSTANTIATE_TEST_SUITE_P(All, BatchPlanModes,
                         testing::Values(Mode{false, false}, Mode{false, true}, Mode{true, false},
                                         Mode{true, true}));

TEST_P(BatchPlanModes, EachEpochSeesEverySampleOnce) {
  const Dataset data = samples(ragged(101, 60));
  BatchOptions o;
  o.shuffle = GetParam().shuffle;
  o.packing = GetParam().packing;
  o.max_seq_length = 64;
  o.batch = 3;
  o.accumulation = 4;
  o.epochs = 3;
  BatchPlan plan(data, o);
  std::vector<int> all(data.size());
  std::iota(all.begin(), all.end(), 0);
  std::vector<std::vector<int>> orders;
  for (int epoch = 0; epoch < 3; ++epoch) {
    std::vector<int> seen = epoch_of(data, plan, epoch);
    orders.push_back(seen);
    std::sort(seen.begin(), seen.end());
    EXPECT_EQ(seen, all);
  }
  EXPECT_EQ(orders[0] == orders[1], !o.shuffle);
  EXPECT_EQ(orders[0] == all, !o.shuffle);
}

TEST_P(BatchPlanModes, AnyStepAtAnyTime) {
  const Dataset data = samples(ragged(57, 40));
  BatchOptions o;
  o.shuffle = GetParam().shuffle;
  o.packing = GetParam().packing;
  o.max_seq_length = 48;
  o.epochs = 2.5;
  BatchPlan forward(data, o), backward(data, o);
  std::vector<std::vector<int32_t>> ids(forward.total_steps());
  Step step;
  for (int64_t n = 0; n < forward.total_steps(); ++n) {
    forward.step(n, step);
    for (const Batch& b : step.microbatches) ids[n].insert(ids[n].end(), b.ids.begin(), b.ids.end());
  }
  for (int64_t n = forward.total_steps() - 1; n >= 0; n -= 2) {
    backward.step(n, step);
    std::vector<int32_t> again;
    for (const Batch& b : step.microbatches) again.insert(again.end(), b.ids.begin(), b.ids.end());
    EXPECT_EQ(again, ids[n]);
  }
}

TEST_P(BatchPlanModes, MaximaAreThoseOfTheRun) {
  const Dataset data = samples(ragged(83, 50));
  BatchOptions o;
  o.shuffle = GetParam().shuffle;
  o.packing = GetParam().packing;
  o.max_seq_length = 64;
  o.batch = 4;
  o.epochs = 3;
  BatchPlan plan(data, o);
  BatchMaxima want;
  Step step;
  for (int64_t n = 0; n < plan.total_steps(); ++n) {
    plan.step(n, step);
    for (const Batch& b : step.microbatches) {
      want.tokens = std::max(want.tokens, b.tokens());
      want.documents = std::max(want.documents, b.documents());
      want.loss_rows = std::max(want.loss_rows, static_cast<int64_t>(b.loss_rows.size()));
      for (int64_t d = 0; d < b.documents(); ++d)
        want.longest = std::max<int64_t>(want.longest, b.cu_seqlens[d + 1] - b.cu_seqlens[d]);
    }
  }
  const BatchMaxima got = plan.maxima();
  EXPECT_EQ(got.tokens, want.tokens);
  EXPECT_EQ(got.documents, want.documents);
  EXPECT_EQ(got.longest, want.longest);
  EXPECT_EQ(got.loss_rows, want.loss_rows);
  o.max_steps = INT32_MAX;  // too long to walk: a bound instead
  const BatchMaxima bound = BatchPlan(data, o).maxima();
  EXPECT_GE(bound.tokens, want.tokens);
  EXPECT_GE(bound.documents, want.documents);
  EXPECT_EQ(bound.longest, want.longest);
  EXPECT_GE(bound.loss_rows, want.loss_rows);
  EXPECT_LE(bound.tokens, o.packing ? 4 * 64 : 4 * 50);
}

TEST(BatchPlan, SeedsDiffer) {
  const Dataset data = samples(ragged(40, 20));
  BatchOptions o;
  std::set<std::vector<int>> orders;
  for (uint64_t seed : {0, 1, 2, 42}) {
    o.seed = seed;
    BatchPlan plan(data, o);
    orders.insert(epoch_of(data, plan, 0));
  }
  EXPECT_EQ(orders.size(), 4u);
}

// Rows of 10: 7+3, 6+4, 5+5 waste nothing; first-fit or next-fit in the data's order need more.
TEST(BatchPlan, BestFit) {
  const Dataset data = samples({3, 4, 5, 5, 6, 7});
  BatchOptions o;
  o.packing = true;
  o.max_seq_length = 10;
  o.batch = 1;
  o.accumulation = 1;
  BatchPlan plan(data, o);
  EXPECT_EQ(plan.rows(), 3);
  Step step;
  std::set<std::set<int>> rows;
  for (int n = 0; n < 3; ++n) {
    plan.step(n, step);
    const auto seen = check_batch(data, step.microbatches[0]);
    EXPECT_EQ(step.tokens, 10);
    rows.insert(std::set<int>(seen.begin(), seen.end()));
  }
  EXPECT_EQ(rows, (std::set<std::set<int>>{{0, 5}, {1, 4}, {2, 3}}));
  // Best-fit, not worst-fit: the 3 goes beside the 7, though the row of the 6 has more room.
  const Dataset other = samples({6, 3, 7});
  BatchPlan second(other, o);
  EXPECT_EQ(second.rows(), 2);
  for (int n = 0; n < 2; ++n) {
    second.step(n, step);
    EXPECT_EQ(step.tokens, step.microbatches[0].documents() == 2 ? 10 : 6);
  }
}

TEST(BatchPlan, NextFitKeepsTheOrder) {
  const Dataset data = samples({3, 4, 5, 5, 6, 7});
  BatchOptions o;
  o.packing = true;
  o.shuffle = false;
  o.max_seq_length = 10;
  o.batch = 1;
  o.accumulation = 1;
  BatchPlan plan(data, o);
  ASSERT_EQ(plan.rows(), 4);
  const std::vector<std::vector<int>> want = {{0, 1}, {2, 3}, {4}, {5}};
  Step step;
  for (int n = 0; n < 4; ++n) {
    plan.step(n, step);
    EXPECT_EQ(check_batch(data, step.microbatches[0]), want[n]);
  }
}

TEST(BatchPlan, WindowsAndEpochs) {
  const Dataset data = samples(std::vector<int>(11, 5));
  BatchOptions o;
  o.batch = 2;
  o.accumulation = 4;
  BatchPlan one(data, o);
  EXPECT_EQ(one.batches_per_epoch(), 6);
  EXPECT_EQ(one.steps_per_epoch(), 2);
  EXPECT_EQ(one.total_steps(), 2);
  EXPECT_DOUBLE_EQ(one.tokens_per_step(), 55.0 / 2);
  Step step;
  one.step(0, step);
  EXPECT_EQ(step.microbatches.size(), 4u);
  EXPECT_DOUBLE_EQ(step.epoch, 4.0 / 6);
  one.step(1, step);  // the last partial window is applied, and its last batch is short
  ASSERT_EQ(step.microbatches.size(), 2u);
  EXPECT_EQ(step.microbatches[0].documents(), 2);
  EXPECT_EQ(step.microbatches[1].documents(), 1);
  o.epochs = 1.2;  // ceil(1.2 * 2)
  EXPECT_EQ(BatchPlan(data, o).total_steps(), 3);
  o.epochs = 0.1;
  EXPECT_EQ(BatchPlan(data, o).total_steps(), 1);
  o.max_steps = 7;
  EXPECT_EQ(BatchPlan(data, o).total_steps(), 7);
  o.epochs = 0;  // max_steps wins
  EXPECT_EQ(BatchPlan(data, o).total_steps(), 7);
  o.max_steps = 0;
  EXPECT_THROW(BatchPlan(data, o), Error);
  // Numbers that could go on to overflow: as many steps as an int32 has, and no more.
  o.accumulation = 1;  // six steps an epoch
  o.epochs = INT32_MAX / 6;
  EXPECT_EQ(BatchPlan(data, o).total_steps(), INT32_MAX - 1);
  EXPECT_EQ(BatchPlan(data, o).maxima().tokens, 10);
  o.epochs = INT32_MAX / 6 + 1;
  EXPECT_THROW(BatchPlan(data, o), Error);
  o.max_steps = INT32_MAX;
  EXPECT_EQ(BatchPlan(data, o).maxima().tokens, 10);
  for (const int64_t many : {int64_t{INT32_MAX} + 1, int64_t{1} << 32, INT64_MAX}) {
    o.max_steps = many;
    EXPECT_THROW(BatchPlan(data, o), Error) << many;
  }
  o.max_steps = 0;
  o.epochs = 1;
  o.batch = 0;
  EXPECT_THROW(BatchPlan(data, o), Error);
}

// The order is part of what a seed means: the numbers below were worked out in Python from the definition
// (SplitMix64 in counter mode, Fisher and Yates from the end), so another compiler cannot change them.
TEST(Order, IsPinned) {
  EXPECT_EQ(permutation(10, 42, OrderStream::epoch, 0),
            (std::vector<uint32_t>{7, 1, 0, 3, 9, 8, 4, 5, 2, 6}));
  EXPECT_EQ(permutation(10, 42, OrderStream::epoch, 1),
            (std::vector<uint32_t>{6, 1, 8, 7, 5, 4, 0, 2, 9, 3}));
  EXPECT_EQ(permutation(10, 42, OrderStream::evaluation, 0),
            (std::vector<uint32_t>{7, 9, 2, 4, 6, 0, 1, 8, 5, 3}));
}

TEST(Order, IsUniform) {
  // 24 orders of 4, 24,000 draws: chi-square with 23 degrees of freedom exceeds 58.6 with probability 6e-5.
  std::map<std::vector<uint32_t>, int> counts;
  for (int i = 0; i < 24000; ++i) ++counts[permutation(4, 3, OrderStream::epoch, i)];
  double chi2 = 0;
  for (const auto& [order, n] : counts) chi2 += (n - 1000.0) * (n - 1000.0) / 1000.0;
  EXPECT_EQ(counts.size(), 24u);
  EXPECT_LT(chi2, 58.6);
}

TEST(Split, DrawsWholeRowsBySeed) {
  Dataset data;
  for (int row = 0; row < 20; ++row)
    for (int piece = 0; piece < 1 + row % 3; ++piece)
      data.add(std::vector<int32_t>{row, piece}, std::vector<uint8_t>{0, 1},
               (static_cast<uint64_t>(row) << 32) + 2 * piece);
  data.sha256 = "abc";
  const auto rows_of = [](const Dataset& d) {
    std::map<int, int> rows;
    for (int64_t i = 0; i < d.size(); ++i) ++rows[d.ids(i)[0]];
    return rows;
  };
  const auto [train, eval] = split_for_evaluation(data, 0.21, 5);
  EXPECT_EQ(rows_of(eval).size(), 5u);  // ceil(4.2)
  EXPECT_EQ(rows_of(train).size(), 15u);
  EXPECT_EQ(train.size() + eval.size(), data.size());
  EXPECT_EQ(train.sha256, "abc");
  for (const auto& [row, pieces] : rows_of(eval)) {
    EXPECT_EQ(pieces, 1 + row % 3);
    EXPECT_EQ(rows_of(train).count(row), 0u);
  }
  EXPECT_EQ(rows_of(split_for_evaluation(data, 0.21, 5).second), rows_of(eval));
  EXPECT_NE(rows_of(split_for_evaluation(data, 0.21, 6).second), rows_of(eval));
  EXPECT_THROW(split_for_evaluation(data, 1.0, 5), Error);
  EXPECT_THROW(split_for_evaluation(data, 0.99, 5), Error);
  EXPECT_THROW(split_for_evaluation(data, 0.0, 5), Error);
}

}  // namespace
}  // namespace qlora
