#include "kernels/dropout/dropout.h"

#include <gtest/gtest.h>

#include "kernels/dropout/dropout_ref.h"
#include "tests/support/body.h"
#include "tests/support/dual.h"

namespace qlora {
namespace {

using testing::Dual;
using testing::kU;
using testing::Tensor;

constexpr DropoutKey kKey{7, 3, 11, .3f};

std::vector<uint64_t> places(int64_t rows) {
  std::vector<uint64_t> t;
  for (int64_t i = 0; i < rows; ++i) t.push_back((static_cast<uint64_t>(i / 5) << 32) + i % 5);
  return t;
}

struct Shape {
  int64_t rows, cols;
};
constexpr Shape kShapes[] = {{1, 1}, {3, 17}, {7, 128}, {4, 131}, {40, 1000}};

TEST(Dropout, ForwardAgreesWithTheDefinition) {
  for (const testing::Body& body : testing::bodies()) {
    const testing::WithBody with(body);
    for (Shape s : kShapes)
      for (DType t : {DType::f32, DType::bf16})
        for (float p : {0.f, .05f, .5f, .999f}) {
          SCOPED_TRACE(cat(body.name(), " ", s.rows, " x ", s.cols, " ", name_of(t), " p ", p));
          const DropoutKey key{7, 3, 11, p};
          const std::vector<uint64_t> tokens = places(s.rows);
          const Tensor x = Tensor::normal(t, s.rows, s.cols, 1);
          Tensor y(t, s.rows, s.cols), in_place = x;
          testing::run_planned(2, [&](Exec& e) { dropout_forward(e, key, tokens, x, y.mat()); });
          testing::run_planned(1, [&](Exec& e) {
            if (!e.rehearsing()) dropout_forward(e, key, tokens, in_place, in_place.mat());
          });
          const std::vector<double> xs = x.values();
          std::vector<double> expected(xs.size());
          ref::dropout_forward(key, s.rows, s.cols, tokens.data(), xs.data(), expected.data());
          for (int64_t i = 0; i < s.rows * s.cols; ++i) {
            const double got = y.get(i / s.cols, i % s.cols);
            // 1 / (1 - p) and the product are rounded; what is dropped is 0 exactly.
            ASSERT_TRUE(testing::close(got, expected[i], 3 * kU * std::abs(expected[i]), t));
            ASSERT_EQ(got == 0, expected[i] == 0);
          }
          EXPECT_EQ(in_place.values(), y.values());
          testing::expect_clean(y);
        }
  }
}

TEST(Dropout, BackwardAgreesWithTheDefinition) {
  for (const testing::Body& body : testing::bodies()) {
    const testing::WithBody with(body);
    for (Shape s : kShapes)
      for (DType t : {DType::f32, DType::bf16})
        for (DType g : {DType::f32, DType::bf16}) {
          const std::vector<uint64_t> tokens = places(s.rows);
          const Tensor dy = Tensor::normal(t, s.rows, s.cols, 1);
          Tensor dx = Tensor::normal(g, s.rows, s.cols, 2);
          const std::vector<double> dys = dy.values(), before = dx.values();
          std::vector<double> expected = before;
          ref::dropout_backward(kKey, s.rows, s.cols, tokens.data(), dys.data(), expected.data());
          testing::run_planned(2, [&](Exec& e) { dropout_backward(e, kKey, tokens, dy, dx.mat()); });
          for (int64_t i = 0; i < s.rows * s.cols; ++i)
            ASSERT_TRUE(testing::close(dx.get(i / s.cols, i % s.cols), expected[i],
                                       kU * (std::abs(before[i]) + 5 * std::abs(dys[i])), g));
          testing::expect_clean(dx);
        }
  }
}

TEST(Dropout, ReferenceGradient) {
  const std::vector<uint64_t> tokens = places(2);
  const std::vector<double> x = Tensor::normal(DType::f32, 2, 9, 1).values();
  const std::vector<double> dy = Tensor::normal(DType::f32, 2, 9, 2).values();
  std::vector<double> dx(x.size(), .5);
  ref::dropout_backward(kKey, 2, 9, tokens.data(), dy.data(), dx.data());
  for (size_t i = 0; i < x.size(); ++i) {
    std::vector<Dual> x2 = testing::convert<Dual>(x), y2(x.size());
    x2[i].d = 1;
    ref::dropout_forward(kKey, 2, 9, tokens.data(), x2.data(), y2.data());
    double derivative = .5;
    for (size_t k = 0; k < y2.size(); ++k) derivative += dy[k] * y2[k].d;
    EXPECT_NEAR(dx[i], derivative, 1e-14);
  }
}

// A token's mask is its own: the same in any row, among any others.
TEST(Dropout, SameUnderAnySplitOfRows) {
  const std::vector<uint64_t> tokens = places(24);
  const Tensor x = Tensor::normal(DType::f32, 24, 300, 1);
  Tensor whole(DType::f32, 24, 300), parts(DType::f32, 24, 300);
  Exec e({DeviceKind::cpu, 0}, 2, nullptr);
  dropout_forward(e, kKey, tokens, x, whole.mat());
  for (int64_t begin : {17, 0, 5}) {
    const int64_t count = begin == 17 ? 7 : begin == 0 ? 5 : 12;
    dropout_forward(e, kKey, std::span(tokens).subspan(begin, count), ConstMat(x).row_range(begin, count),
                    parts.mat().row_range(begin, count));
  }
  EXPECT_TRUE(whole == parts);
}

// Whether two keys (or two columns) agree on an element, over n of them: binomial, so off its mean by more
// than 5 standard deviations once in 1.7 million, and the inputs are fixed.
void expect_rate(double successes, double n, double rate, const char* what) {
  EXPECT_NEAR(successes / n, rate, 5 * std::sqrt(rate * (1 - rate) / n)) << what;
}

TEST(Dropout, KeepsItsShare) {
  for (float p : {.05f, .1f, .5f}) {
    double kept = 0;
    for (uint64_t token = 0; token < 1000; ++token)
      for (uint32_t column = 0; column < 1000; ++column)
        kept += ref::dropout_kept({1, 2, 3, p}, token, column);
    expect_rate(kept, 1e6, 1. - p, "kept");
  }
}

TEST(Dropout, NeighboursAreIndependent) {
  struct Step {
    const char* what;
    uint64_t seed, step;
    uint32_t module;
    uint64_t token;
    uint32_t column;
  };
  const Step steps[] = {{"seed", 1, 0, 0, 0, 0},
                        {"step", 0, 1, 0, 0, 0},
                        {"module", 0, 0, 1, 0, 0},
                        {"token", 0, 0, 0, 1, 0},
                        {"row", 0, 0, 0, 1ull << 32, 0},
                        {"column", 0, 0, 0, 0, 1},
                        {"column of 16", 0, 0, 0, 0, 16},
                        {"token and column", 0, 0, 0, 1, 1},
                        {"seed for step", 1, ~0ull, 0, 0, 0}};
  for (const Step& s : steps) {
    double agree = 0;
    for (uint64_t token = 0; token < 500; ++token)
      for (uint32_t column = 0; column < 500; ++column)
        agree += ref::dropout_kept({5, 9, 4, .5f}, token, column) ==
                 ref::dropout_kept({5 + s.seed, 9 + s.step, 4 + s.module, .5f}, token + s.token,
                                   column + s.column);
    expect_rate(agree, 250000, .5, s.what);
  }
}

// Sums over a token's columns and over a column's tokens have the variance of independent draws.
TEST(Dropout, RowsAndColumnsSpreadAsIndependentDraws) {
  constexpr int kN = 1000;
  std::vector<double> by_token(kN), by_column(kN);
  for (uint64_t token = 0; token < kN; ++token)
    for (uint32_t column = 0; column < kN; ++column) {
      const bool kept = ref::dropout_kept({1, 1, 1, .5f}, token, column);
      by_token[token] += kept;
      by_column[column] += kept;
    }
  for (const auto* sums : {&by_token, &by_column}) {
    double variance = 0;
    for (double s : *sums) variance += (s - kN / 2.) * (s - kN / 2.) / kN;
    // The variance of kN draws is kN / 4, estimated to a relative sqrt(2 / kN).
    EXPECT_NEAR(variance / (kN / 4.), 1, 5 * std::sqrt(2. / kN));
  }
}

TEST(Dropout, RefusesAProbabilityOfOne) {
  Tensor x(DType::f32, 1, 8);
  Exec e({DeviceKind::cpu, 0}, 1, nullptr);
  const std::vector<uint64_t> tokens = places(1);
  EXPECT_THROW(dropout_forward(e, {0, 0, 0, 1.f}, tokens, x, x.mat()), Error);
}

}  // namespace
}  // namespace qlora
