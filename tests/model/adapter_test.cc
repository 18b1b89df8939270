#include "model/adapter.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>

namespace qlora {
namespace {

ModelDesc desc() {
  BlockDesc b;
  b.dim = 64, b.ff = 96, b.q_heads = 4, b.kv_heads = 2, b.head_dim = 16;
  ModelDesc d;
  d.dim = 64;
  d.blocks = {b, b};
  return d;
}

std::vector<LoraChoice> every(int rank) {
  std::vector<LoraChoice> all;
  for (int block = 1; block >= 0; --block)
    for (int k = kLinears; k-- > 0;) all.push_back({block, static_cast<LinearKind>(k), rank, 2});
  return all;
}

// Each element has one owner, a group's A's lie together in the order of the pass, and B's follow.
TEST(AdapterLayout, PartsCoverTheBufferOnce) {
  const ModelDesc d = desc();
  const AdapterLayout layout(d, every(4));
  std::vector<int> owners(static_cast<size_t>(layout.size()));
  for (const LoraModule& m : layout.modules()) {
    EXPECT_EQ(m.in, d.in_features(m.block, m.kind));
    EXPECT_EQ(m.out, d.out_features(m.block, m.kind));
    EXPECT_EQ(m.index, static_cast<uint32_t>(m.block * kLinears + static_cast<int>(m.kind)));
    EXPECT_EQ(layout.find(m.block, m.kind), &m);
    for (int64_t i = 0; i < m.rank * m.in; ++i) ++owners[static_cast<size_t>(m.a + i)];
    for (int64_t i = 0; i < m.rank * m.out; ++i) ++owners[static_cast<size_t>(m.b + i)];
  }
  EXPECT_EQ(std::count(owners.begin(), owners.end(), 1), layout.size());
  for (int block : {0, 1})
    for (int g = 0; g < kGroups; ++g) {
      const auto kinds = members(static_cast<Group>(g));
      for (size_t i = 1; i < kinds.size(); ++i) {
        const LoraModule *one = layout.find(block, kinds[i - 1]), *next = layout.find(block, kinds[i]);
        EXPECT_EQ(next->a, one->a + one->rank * one->in);
        EXPECT_EQ(next->b, one->b + one->rank * one->out);
      }
    }
}

TEST(AdapterLayout, OnlyWhatWasChosen) {
  const std::vector<LoraChoice> choices{{1, LinearKind::v, 3, .5f}, {1, LinearKind::down, 2, 1}};
  const AdapterLayout layout(desc(), choices);
  EXPECT_EQ(layout.size(), 3 * (64 + 32) + 2 * (96 + 64));
  ASSERT_NE(layout.find(1, LinearKind::v), nullptr);
  EXPECT_EQ(layout.find(1, LinearKind::v)->scale, .5f);
  EXPECT_EQ(layout.find(0, LinearKind::v), nullptr);
  EXPECT_EQ(layout.find(1, LinearKind::q), nullptr);
}

// A uniform in +-1/sqrt(in), B zero.
TEST(AdapterLayout, Initialize) {
  const AdapterLayout layout(desc(), every(16));
  std::vector<float> params(static_cast<size_t>(layout.size()), 7);
  layout.initialize(3, params);
  for (const LoraModule& m : layout.modules()) {
    const auto a = params.begin() + m.a, b = params.begin() + m.b;
    EXPECT_TRUE(std::all_of(b, b + m.rank * m.out, [](float v) { return v == 0; }));
    const int64_t n = m.rank * m.in;
    const double bound = 1 / std::sqrt(static_cast<double>(m.in));
    double sum = 0, squares = 0;
    for (int64_t i = 0; i < n; ++i) {
      ASSERT_LE(std::abs(a[i]), bound);
      sum += a[i], squares += static_cast<double>(a[i]) * a[i];
    }
    // Of n uniform draws: the mean's deviation is bound / sqrt(3 n); that of the mean square is
    // bound^2 sqrt(4 / (45 n)). Five of them, inputs fixed.
    const double count = static_cast<double>(n);
    EXPECT_NEAR(sum / count, 0, 5 * bound / std::sqrt(3 * count));
    EXPECT_NEAR(squares / count, bound * bound / 3, 5 * bound * bound * std::sqrt(4 / (45 * count)));
    EXPECT_EQ(std::set<float>(a, a + n).size() > static_cast<size_t>(n) * 99 / 100, true);
  }
}

// A value hangs on seed, module and place alone: not on what else is adapted.
TEST(AdapterLayout, InitializeIsAFunctionOfSeedAndModule) {
  const AdapterLayout all(desc(), every(4));
  const std::vector<LoraChoice> one{{1, LinearKind::up, 4, 2}};
  const AdapterLayout alone(desc(), one);
  std::vector<float> many(static_cast<size_t>(all.size())), few(static_cast<size_t>(alone.size())),
      other(many.size());
  all.initialize(3, many), alone.initialize(3, few), all.initialize(4, other);
  const LoraModule *m = all.find(1, LinearKind::up), *f = alone.find(1, LinearKind::up),
                   *neighbour = all.find(0, LinearKind::up);
  EXPECT_TRUE(std::equal(few.begin() + f->a, few.begin() + f->a + 4 * f->in, many.begin() + m->a));
  EXPECT_FALSE(
      std::equal(many.begin() + neighbour->a, many.begin() + neighbour->a + 4 * 64, many.begin() + m->a));
  EXPECT_FALSE(std::equal(many.begin() + m->a, many.begin() + m->a + 4 * 64, other.begin() + m->a));
}

}  // namespace
}  // namespace qlora
