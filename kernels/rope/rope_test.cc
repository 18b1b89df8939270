#include "kernels/rope/rope.h"

#include <gtest/gtest.h>

#include "kernels/rope/rope_ref.h"
#include "tests/support/body.h"
#include "tests/support/dual.h"

namespace qlora {
namespace {

using testing::Dual;
using testing::kU;
using testing::Tensor;

constexpr int kPositions = 50;

struct Angles {
  std::vector<float> cos, sin;
  int rotary;
  explicit Angles(int rotary) : rotary(rotary) {
    for (int p = 0; p < kPositions; ++p)
      for (int i = 0; i < rotary / 2; ++i) {
        const double angle = p * std::pow(10000., -2. * i / rotary);
        cos.push_back(static_cast<float>(std::cos(angle)));
        sin.push_back(static_cast<float>(std::sin(angle)));
      }
  }
  RopeTable table() const { return {cos.data(), sin.data(), kPositions, rotary}; }
};

struct Case {
  int heads, head_dim, rotary;
};
constexpr Case kCases[] = {{1, 2, 2}, {3, 16, 16}, {2, 64, 64}, {2, 80, 32}, {1, 128, 96}, {4, 10, 6}, {9, 64, 64}};
const std::vector<int32_t> kRows = {0, 1, 2, 49, 0, 1, 7};

TEST(Rope, AgreesWithTheDefinition) {
  for (const testing::Body& body : testing::bodies()) {
    const testing::WithBody with(body);
    for (const Case& c : kCases)
      for (DType t : {DType::f32, DType::bf16})
        for (bool inverse : {false, true}) {
          SCOPED_TRACE(cat(body.name(), " head_dim ", c.head_dim, " rotary ", c.rotary, " ", name_of(t)));
          const Angles angles(c.rotary);
          const int64_t rows = static_cast<int64_t>(kRows.size()), cols = c.heads * c.head_dim;
          Tensor x = Tensor::normal(t, rows, cols, 1);
          const std::vector<double> before = x.values();
          std::vector<double> expected = before;
          ref::rope(rows, c.heads, c.head_dim, c.rotary, kRows.data(), angles.cos.data(), angles.sin.data(),
                    inverse, expected.data());
          testing::run_planned(
              2, [&](Exec& e) { rope(e, angles.table(), kRows, c.heads, c.head_dim, inverse, x.mat()); });
          const auto half = static_cast<size_t>(c.rotary / 2);
          for (size_t i = 0; i < expected.size(); ++i) {
            const size_t in_head = i % c.head_dim;
            const double got = x.get(static_cast<int64_t>(i) / cols, static_cast<int64_t>(i) % cols);
            if (in_head >= 2 * half) {
              ASSERT_EQ(got, before[i]);  // passes
              continue;
            }
            const double partner = before[in_head < half ? i + half : i - half];
            // Two products, one sum.
            const double error = 3 * kU * (std::abs(before[i]) + std::abs(partner));
            ASSERT_TRUE(testing::close(got, expected[i], error, t))
                << i << ": " << got << ", " << expected[i];
          }
          testing::expect_clean(x);
        }
  }
}

// The loss <d, rope(x)> has the gradient rope inverse of d: what the op computes with `inverse`.
TEST(Rope, InverseIsTheGradient) {
  const Angles angles(4);
  const std::vector<int32_t> positions = {3, 11};
  const std::vector<double> x = Tensor::normal(DType::f32, 2, 12, 1).values();
  const std::vector<double> d = Tensor::normal(DType::f32, 2, 12, 2).values();
  std::vector<double> gradient = d;
  ref::rope(2, 2, 6, 4, positions.data(), angles.cos.data(), angles.sin.data(), true, gradient.data());
  for (size_t i = 0; i < x.size(); ++i) {
    std::vector<Dual> x2 = testing::convert<Dual>(x);
    x2[i].d = 1;
    ref::rope(2, 2, 6, 4, positions.data(), angles.cos.data(), angles.sin.data(), false, x2.data());
    double derivative = 0;
    for (size_t k = 0; k < x.size(); ++k) derivative += d[k] * x2[k].d;
    EXPECT_NEAR(gradient[i], derivative, 1e-13);
  }
}

TEST(Rope, RefusesAPositionOffTheTable) {
  const Angles angles(4);
  Tensor x(DType::f32, 1, 4);
  Exec e({DeviceKind::cpu, 0}, 1, nullptr);
  for (int32_t position : {-1, kPositions}) {
    const std::vector<int32_t> positions = {position};
    EXPECT_THROW(rope(e, angles.table(), positions, 1, 4, false, x.mat()), Error);
  }
}

}  // namespace
}  // namespace qlora
