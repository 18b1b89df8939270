#include "kernels/cross_entropy/cross_entropy.h"

#include <gtest/gtest.h>

#include <limits>
#include <optional>

#include "kernels/cross_entropy/cross_entropy_ref.h"
#include "tests/support/body.h"
#include "tests/support/dual.h"

namespace qlora {
namespace {

using testing::Dual;
using testing::kU;
using testing::Tensor;

struct Shape {
  int64_t rows, vocab;
};
constexpr Shape kShapes[] = {{1, 1}, {3, 2}, {4, 17}, {5, 1030}, {2, 5001}};

std::vector<int32_t> labels_of(Shape s) {
  std::vector<int32_t> out;
  for (int64_t i = 0; i < s.rows; ++i)
    out.push_back(static_cast<int32_t>((i * 7919 + s.vocab - 1) % s.vocab));
  return out;
}

struct Result {
  std::vector<float> loss;
  std::vector<uint8_t> hit;
};

// The gradient, where one is wanted, in the logits' place.
Result run(Tensor& logits, const std::vector<int32_t>& labels, float softcap, std::optional<DType> gradient,
           float scale, int threads = 2) {
  Result r{std::vector<float>(labels.size()), std::vector<uint8_t>(labels.size(), 9)};
  testing::run_planned(threads, [&](Exec& e) {
    cross_entropy(e, logits.mat(), labels, softcap, gradient ? gradient_over(logits.mat(), *gradient) : Mat{},
                  scale, r.loss, r.hit);
  });
  return r;
}

TEST(CrossEntropy, AgreesWithTheDefinition) {
  for (const testing::Body& body : testing::bodies()) {
    const testing::WithBody with(body);
    for (Shape s : kShapes)
      for (float softcap : {0.f, 5.f})
        for (std::optional<DType> gradient : {std::optional<DType>(), {DType::f32}, {DType::bf16}}) {
          SCOPED_TRACE(cat(body.name(), " ", s.rows, " x ", s.vocab, " cap ", softcap));
          Tensor logits = Tensor::normal(DType::f32, s.rows, s.vocab, 1, 4);
          const std::vector<int32_t> labels = labels_of(s);
          logits.set(0, labels[0], 21);  // a hit
          const std::vector<double> raw = logits.values();
          const float scale = .125f;
          const Result got = run(logits, labels, softcap, gradient, scale);
          const Mat gradients = gradient_over(logits.mat(), gradient.value_or(DType::f32));
          const auto value = [&](int64_t i, int64_t j) {
            return gradients.dtype == DType::bf16 ? static_cast<float>(gradients.row<bf16>(i)[j])
                                                  : gradients.row<float>(i)[j];
          };
          for (int64_t i = 0; i < s.rows; ++i) {
            const double* row = raw.data() + i * s.vocab;
            std::vector<double> expected(s.vocab);
            bool hit = false;
            const double loss =
                ref::cross_entropy<double>(s.vocab, row, labels[i], softcap, scale, expected.data(), &hit);
            // Each exp is off by its argument's rounding (scores span `range`; a capped one is off by tanh's
            // error times the cap) and 4 u; a block's sum adds its terms' count.
            double range = 0;
            for (int64_t j = 0; j < s.vocab; ++j) range = std::max(range, 2 * std::abs(row[j]));
            const double error = kU * (2 * range + 8 * softcap + std::min<double>(s.vocab, 1024) + 8);
            EXPECT_TRUE(testing::close(got.loss[i], loss, error, DType::f32))
                << got.loss[i] << " not " << loss;
            EXPECT_EQ(got.hit[i], hit ? 1 : 0);
            for (int64_t j = 0; j < s.vocab; ++j) {
              if (!gradient) {
                ASSERT_EQ(logits.get(i, j), row[j]);
                continue;
              }
              const double slope_error = softcap > 0 ? 8 * kU * scale : 0;  // of 1 - tanh^2, times p <= 1
              const double p_error =
                  error * (std::abs(expected[j]) + (j == labels[i] ? scale : 0)) + slope_error;
              ASSERT_TRUE(testing::close(value(i, j), expected[j], p_error, *gradient))
                  << i << ", " << j << ": " << value(i, j) << " not " << expected[j];
            }
          }
          testing::expect_clean(logits);
          testing::expect_repeats(got.loss);
        }
  }
}

TEST(CrossEntropy, FirstLargestWins) {
  for (const testing::Body& body : testing::bodies()) {
    const testing::WithBody with(body);
    Tensor logits(DType::f32, 4, 40);
    for (int64_t i = 0; i < 4; ++i)
      for (int64_t j = 0; j < 40; ++j) logits.set(i, j, j == 5 || j == 37 ? 2 : 1);
    const Result r = run(logits, {5, 37, 0, 39}, 0, {}, 1);
    EXPECT_EQ(r.hit, (std::vector<uint8_t>{1, 0, 0, 0}));
  }
}

// Wherever it stands: at the begin and end of a thread block's turns, beside the label.
TEST(CrossEntropy, OneLargerLogitIsAMiss) {
  for (const testing::Body& body : testing::bodies()) {
    const testing::WithBody with(body);
    std::vector<int32_t> labels;
    std::vector<int64_t> larger;
    for (int32_t label : {0, 255, 256, 257, 300, 599})
      for (int64_t j : {0, 1, 254, 255, 256, 257, 258, 301, 513, 598, 599})
        if (j != label) {
          labels.push_back(label);
          larger.push_back(j);
        }
    const auto rows = static_cast<int64_t>(labels.size());
    Tensor logits(DType::f32, rows, 600);
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < 600; ++j)
        logits.set(i, j,
                   j == larger[static_cast<size_t>(i)]   ? 2
                   : j == labels[static_cast<size_t>(i)] ? 1.5
                                                         : 1);
    const Result r = run(logits, labels, 0, {}, 1);
    EXPECT_EQ(r.hit, std::vector<uint8_t>(labels.size(), 0));
  }
}

TEST(CrossEntropy, LargeLogitsStayFinite) {
  for (const testing::Body& body : testing::bodies()) {
    const testing::WithBody with(body);
    Tensor logits(DType::f32, 1, 33);
    for (int64_t j = 0; j < 33; ++j) logits.set(0, j, j == 8 ? 1e30 : -1e30);
    const Result r = run(logits, {8}, 0, DType::f32, 1);
    EXPECT_EQ(r.loss[0], 0);
    for (int64_t j = 0; j < 33; ++j) EXPECT_NEAR(logits.get(0, j), 0, 1e-37);
  }
}

TEST(CrossEntropy, NaNShows) {
  for (const testing::Body& body : testing::bodies()) {
    const testing::WithBody with(body);
    for (int64_t at : {0, 17, 32}) {
      Tensor logits = Tensor::normal(DType::f32, 1, 33, 1);
      logits.set(0, at, std::numeric_limits<double>::quiet_NaN());
      EXPECT_TRUE(std::isnan(run(logits, {3}, 0, DType::f32, 1).loss[0])) << at;
    }
  }
}

TEST(CrossEntropy, SameBitsWhateverTheThreads) {
  const Shape s{70, 1030};
  Tensor one = Tensor::normal(DType::f32, s.rows, s.vocab, 1, 4), three = one;
  const Result a = run(one, labels_of(s), 0, DType::f32, .1f, 1),
               b = run(three, labels_of(s), 0, DType::f32, .1f, 3);
  EXPECT_TRUE(one == three);
  EXPECT_EQ(a.loss, b.loss);
}

TEST(CrossEntropy, ReferenceGradient) {
  const int64_t vocab = 6;
  const std::vector<double> raw = Tensor::normal(DType::f32, 1, vocab, 1).values();
  for (double cap : {0., 1.5})
    for (int64_t label : {0, 3}) {
      std::vector<double> gradient(vocab);
      bool hit = false;
      ref::cross_entropy<double>(vocab, raw.data(), label, cap, .5, gradient.data(), &hit);
      for (int64_t j = 0; j < vocab; ++j) {
        std::vector<Dual> x = testing::convert<Dual>(raw);
        x[j].d = 1;
        const Dual loss =
            ref::cross_entropy<Dual>(vocab, x.data(), label, Dual(cap), Dual(.5), nullptr, &hit);
        EXPECT_NEAR(gradient[j], .5 * loss.d, 1e-14);
      }
    }
}

TEST(CrossEntropy, RefusesALabelOutOfTheVocabulary) {
  Tensor logits(DType::f32, 1, 8);
  for (int32_t label : {-100, 8}) EXPECT_THROW(run(logits, {label}, 0, {}, 1), Error);
}

}  // namespace
}  // namespace qlora
