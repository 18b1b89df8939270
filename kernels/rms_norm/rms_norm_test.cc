#include "kernels/rms_norm/rms_norm.h"

#include <gtest/gtest.h>

#include "kernels/rms_norm/rms_norm_ref.h"
#include "tests/support/body.h"
#include "tests/support/dual.h"

namespace qlora {
namespace {

using testing::close;
using testing::Dual;
using testing::kU;
using testing::Tensor;

constexpr DType kTypes[] = {DType::f32, DType::bf16};
constexpr float kEps = 1e-5f;

struct Shape {
  int64_t rows, cols;
};
constexpr Shape kShapes[] = {{1, 1}, {2, 7}, {3, 16}, {5, 65}, {40, 1000}, {2, 2048}};

std::vector<float> weights(int64_t cols) {
  std::vector<float> w;
  for (int64_t j = 0; j < cols; ++j) w.push_back(.5f + .01f * static_cast<float>(j % 97));
  return w;
}

template <class F>
void for_each_case(const F& f) {
  testing::for_each_body([&] {
    for (Shape s : kShapes)
      for (float offset : {0.f, 1.f}) {
        SCOPED_TRACE(cat(s.rows, " x ", s.cols, " offset ", offset));
        f(s, offset);
      }
  });
}

struct Forward {
  std::vector<double> y, rstd;
};

Forward reference(Shape s, float offset, const Tensor& x) {
  const std::vector<float> w = weights(s.cols);
  const std::vector<double> w2(w.begin(), w.end());
  Forward r{std::vector<double>(s.rows * s.cols), std::vector<double>(s.rows)};
  ref::rms_norm_forward<double>(s.rows, s.cols, x.values().data(), w2.data(), offset, kEps, r.y.data(),
                                r.rstd.data());
  return r;
}

// A sum of n positive terms is off by n u at most, its root by half of that; a few more roundings follow.
double forward_error(int64_t cols) { return kU * (static_cast<double>(cols) / 2 + 8); }

TEST(RmsNorm, ForwardAgreesWithTheDefinition) {
  for_each_case([](Shape s, float offset) {
    const std::vector<float> w = weights(s.cols);
    for (DType xt : kTypes)
      for (DType yt : kTypes) {
        const Tensor x = Tensor::normal(xt, s.rows, s.cols, 1, 2);
        Tensor y(yt, s.rows, s.cols);
        std::vector<float> rstd(s.rows);
        testing::run_planned(
            2, [&](Exec& e) { rms_norm_forward(e, x, w.data(), offset, kEps, y.mat(), rstd.data()); });
        const Forward r = reference(s, offset, x);
        for (int64_t i = 0; i < s.rows; ++i) {
          EXPECT_NEAR(rstd[i], r.rstd[i], forward_error(s.cols) * r.rstd[i]);
          for (int64_t j = 0; j < s.cols; ++j) {
            const double expected = r.y[i * s.cols + j];
            ASSERT_TRUE(close(y.get(i, j), expected, forward_error(s.cols) * std::abs(expected), yt))
                << i << ", " << j << ": " << y.get(i, j) << " not " << expected;
          }
        }
        testing::expect_clean(y);
        testing::expect_repeats(rstd);
      }
  });
}

TEST(RmsNorm, ForwardInPlaceAndWithoutRstd) {
  const std::vector<float> w = weights(65);
  testing::for_each_body([&] {
    Tensor x = Tensor::normal(DType::bf16, 5, 65, 1), y(DType::bf16, 5, 65);
    testing::run_planned(1, [&](Exec& e) { rms_norm_forward(e, x, w.data(), 0, kEps, y.mat(), nullptr); });
    testing::run_planned(1, [&](Exec& e) {
      if (!e.rehearsing()) rms_norm_forward(e, x, w.data(), 0, kEps, x.mat(), nullptr);
    });
    EXPECT_EQ(x.values(), y.values());
  });
}

TEST(RmsNorm, BackwardAgreesWithTheDefinition) {
  for_each_case([](Shape s, float offset) {
    const std::vector<float> w = weights(s.cols);
    const std::vector<double> w2(w.begin(), w.end());
    for (DType dt : kTypes)
      for (DType xt : kTypes)
        for (DType gt : kTypes) {
          const Tensor x = Tensor::normal(xt, s.rows, s.cols, 1, 2);
          const Tensor dy = Tensor::normal(dt, s.rows, s.cols, 2);
          const Forward r = reference(s, offset, x);
          const std::vector<float> rstd(r.rstd.begin(), r.rstd.end());
          Tensor dx = Tensor::normal(gt, s.rows, s.cols, 3);
          std::vector<double> expected = dx.values();
          const std::vector<double> xs = x.values(), dys = dy.values(), before = expected;
          ref::rms_norm_backward<double>(s.rows, s.cols, dys.data(), xs.data(), w2.data(), offset,
                                         r.rstd.data(), expected.data());
          testing::run_planned(
              2, [&](Exec& e) { rms_norm_backward(e, dy, x, w.data(), offset, rstd.data(), dx.mat()); });
          for (int64_t i = 0; i < s.rows; ++i) {
            double dot = 0;  // of absolute values: what the row's sum can be off by is (cols + 8) u of it
            for (int64_t j = 0; j < s.cols; ++j)
              dot += std::abs(dys[i * s.cols + j] * (offset + w2[j]) * xs[i * s.cols + j]);
            for (int64_t j = 0; j < s.cols; ++j) {
              const int64_t at = i * s.cols + j;
              const double direct = std::abs(dys[at] * (offset + w2[j]) * r.rstd[i]);
              const double along = std::abs(xs[at]) * std::pow(r.rstd[i], 3) * dot / s.cols;
              const double error = kU * (6 * direct + (s.cols + 16) * along + 2 * std::abs(before[at]));
              ASSERT_TRUE(close(dx.get(i, j), expected[at], error, gt))
                  << i << ", " << j << ": " << dx.get(i, j) << " not " << expected[at] << " +- " << error;
            }
          }
          testing::expect_clean(dx);
        }
  });
}

TEST(RmsNorm, SameBitsWhateverTheThreads) {
  const std::vector<float> w = weights(1000);
  const Tensor x = Tensor::normal(DType::f32, 100, 1000, 1);
  Tensor one(DType::f32, 100, 1000), four(DType::f32, 100, 1000);
  testing::run_planned(1, [&](Exec& e) { rms_norm_forward(e, x, w.data(), 0, kEps, one.mat(), nullptr); });
  testing::run_planned(4, [&](Exec& e) { rms_norm_forward(e, x, w.data(), 0, kEps, four.mat(), nullptr); });
  EXPECT_TRUE(one == four);
}

TEST(RmsNorm, ReferenceGradient) {
  const int64_t rows = 2, cols = 5;
  const std::vector<double> x = Tensor::normal(DType::f32, rows, cols, 1).values();
  const std::vector<double> dy = Tensor::normal(DType::f32, rows, cols, 2).values();
  const std::vector<double> w = Tensor::normal(DType::f32, 1, cols, 3).values();
  std::vector<double> y(x.size()), rstd(rows), dx(x.size(), .25);
  ref::rms_norm_forward<double>(rows, cols, x.data(), w.data(), 1, 1e-5, y.data(), rstd.data());
  ref::rms_norm_backward<double>(rows, cols, dy.data(), x.data(), w.data(), 1, rstd.data(), dx.data());
  const std::vector<Dual> w2 = testing::convert<Dual>(w);
  for (size_t i = 0; i < x.size(); ++i) {
    std::vector<Dual> x2 = testing::convert<Dual>(x), y2(x.size()), rstd2(rows);
    x2[i].d = 1;
    ref::rms_norm_forward(rows, cols, x2.data(), w2.data(), Dual(1), Dual(1e-5), y2.data(), rstd2.data());
    double derivative = .25;
    for (size_t k = 0; k < y2.size(); ++k) derivative += dy[k] * y2[k].d;
    EXPECT_NEAR(dx[i], derivative, 1e-13);
  }
}

TEST(RmsNorm, RefusesShapesThatDiffer) {
  Tensor x(DType::f32, 2, 8), y(DType::f32, 2, 7);
  const std::vector<float> w = weights(8);
  Exec e({DeviceKind::cpu, 0}, 1, nullptr);
  EXPECT_THROW(rms_norm_forward(e, x, w.data(), 0, kEps, y.mat(), nullptr), Error);
}

}  // namespace
}  // namespace qlora
