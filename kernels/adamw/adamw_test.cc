#include "kernels/adamw/adamw.h"

#include <gtest/gtest.h>

#include "kernels/adamw/adamw_ref.h"
#include "tests/support/body.h"
#include "tests/support/golden_tensors.h"
#include "tests/support/optim_numbers.h"

namespace qlora {
namespace {

using testing::kU;
using testing::Tensor;

std::vector<float> floats(int64_t n, uint64_t seed, double scale) {
  const std::vector<double> v = Tensor::normal(DType::f32, 1, n, seed, scale).values();
  return {v.begin(), v.end()};
}

TEST(AdamW, AgreesWithTheDefinition) {
  for (const testing::Body& body : testing::bodies()) {
    const testing::WithBody with(body);
    for (int64_t n : {1, 15, 16, 33, 20000})
      for (const auto& [step, epsilon] : {std::pair(1, 1e-8), {1, .1}, {2, .1}, {1000, 1e-8}}) {
        const AdamWHyper h{1e-3, .9, .95, epsilon, .01, step, .25f};
        const std::vector<float> g = floats(n, 1, 1), p0 = floats(n, 2, .1), m0 = floats(n, 3, .1);
        std::vector<float> v0 = floats(n, 4, .1), p = p0, m = m0;
        for (float& x : v0) x = x * x;
        std::vector<float> v = v0;
        const auto most = static_cast<size_t>(n);
        for (std::vector<float>* x : {&p, &m, &v}) x->push_back(7);  // nobody's
        testing::run_planned(2, [&](Exec& e) {
          adamw(e, h, std::span(p).first(most), g, std::span(m).first(most), std::span(v).first(most));
        });
        testing::expect_repeats(p);
        EXPECT_TRUE(p.back() == 7 && m.back() == 7 && v.back() == 7);
        for (int64_t i = 0; i < n; ++i) {
          double rp = p0[i], rm = m0[i], rv = v0[i];
          ref::adamw<double>(h, rp, g[i], rm, rv);
          // Rounded: the scaled gradient, coefficients, products and the sum of each moment.
          const double m_error = 4 * kU * (.9 * std::abs(m0[i]) + .1 * std::abs(g[i] * .25));
          const double v_error = 6 * kU * (.95 * v0[i] + .05 * g[i] * g[i] * .0625);
          // The update's numerator is off by m's error, its root by half of v's relative one.
          const double update = std::abs(rp - p0[i] * (1 - 1e-5));
          const double relative = 8 * kU + .5 * v_error / rv;
          const double p_error =
              update * relative + (rm != 0 ? update * m_error / std::abs(rm) : 0) + 3 * kU * std::abs(p0[i]);
          ASSERT_NEAR(m[i], rm, m_error);
          ASSERT_NEAR(v[i], rv, v_error);
          ASSERT_NEAR(p[i], rp, p_error) << i << " step " << step;
        }
      }
  }
}

struct Trajectory {
  const char* tag;
  double weight_decay, beta2;
  uint32_t k, n, every;
};

// Every step rounds the parameter (at most 1/16 + 20 updates of about lr: below 0.1) twice, and its update,
// of about lr, by some 20 u from moments that are themselves off by a few u a step. The other side rounds as
// much.
constexpr double kStepError = 2 * (2 * kU * .1 + 40 * kU * 2e-3);

void expect_values(const golden::Tensors& file, const std::string& key, const std::vector<float>& got,
                   uint32_t every, double tolerance) {
  const std::vector<float> expected = file.f32(key);
  ASSERT_EQ(expected.size(), (got.size() + every - 1) / every);
  for (size_t i = 0; i < expected.size(); ++i)
    ASSERT_NEAR(got[i * every], expected[i], tolerance) << key << i;
}

TEST(AdamW, FollowsTorchAndBitsandbytes) {
  const golden::Tensors file("kernels/optim.safetensors");
  for (const Trajectory& c :
       {Trajectory{"wd0.01.b0.999", .01, .999, 0, 300, 1}, Trajectory{"wd0.01.b0.999", .01, .999, 1, 4096, 8},
        Trajectory{"wd0.b0.95", 0, .95, 0, 300, 1}, Trajectory{"wd0.b0.95", 0, .95, 1, 4096, 8}})
    for (const testing::Body& body : testing::bodies()) {
      const testing::WithBody with(body);
      SCOPED_TRACE(cat(c.tag, " p", c.k, " ", body.name()));
      std::vector<float> p = testing::optim_params(c.n, c.k), m(c.n), v(c.n);
      const std::string number = std::to_string(c.k);
      for (uint32_t t = 1; t <= 20; ++t) {
        const std::vector<float> g = testing::optim_gradient(c.n, c.k, t);
        testing::run_planned(1, [&](Exec& e) {
          adamw(e, {1e-3, .9, c.beta2, 1e-8, c.weight_decay, t, 1}, p, g, m, v);
        });
        if (t != 1 && t != 2 && t != 5 && t != 20) continue;
        const std::string key = cat(".", c.tag, ".p", number, ".step", t);
        expect_values(file, "torch" + key, p, c.every, t * kStepError);
        expect_values(file, "bnb32" + key, p, c.every, t * kStepError);
      }
      // A moment is a sum of twenty terms of at most 1/2 (1/4), each rounded three times.
      expect_values(file, cat("torch.", c.tag, ".m", number), m, c.every, 60 * kU * .5);
      expect_values(file, cat("torch.", c.tag, ".v", number), v, c.every, 60 * kU * .25);
    }
}

TEST(AdamW, SameBitsWhateverTheThreads) {
  const std::vector<float> g = floats(50000, 1, 1);
  std::vector<float> p1 = floats(50000, 2, 1), m1(50000), v1(50000), p3 = p1, m3 = m1, v3 = v1;
  const AdamWHyper h{1e-3, .9, .999, 1e-8, .01, 1, 1};
  testing::run_planned(1, [&](Exec& e) { adamw(e, h, p1, g, m1, v1); });
  testing::run_planned(3, [&](Exec& e) { adamw(e, h, p3, g, m3, v3); });
  EXPECT_EQ(p1, p3);
  EXPECT_EQ(v1, v3);
}

TEST(Sgd, AgreesWithTheDefinition) {
  for (const testing::Body& body : testing::bodies()) {
    const testing::WithBody with(body);
    for (int64_t n : {1, 17, 20000}) {
      const std::vector<float> g = floats(n, 1, 1), p0 = floats(n, 2, 1);
      std::vector<float> p = p0;
      p.push_back(7);  // nobody's
      testing::run_planned(
          2, [&](Exec& e) { sgd(e, .125, .01f, .5f, std::span(p).first(static_cast<size_t>(n)), g); });
      EXPECT_EQ(p.back(), 7);
      for (int64_t i = 0; i < n; ++i) {
        double expected = p0[i];
        ref::sgd<double>(.125, .01f, .5, expected, g[i]);
        ASSERT_NEAR(p[i], expected, 4 * kU * (std::abs(p0[i]) + std::abs(g[i])));
      }
    }
  }
}

TEST(AdamW, RefusesStepZero) {
  std::vector<float> p(1), m(1), v(1);
  Exec e({DeviceKind::cpu, 0}, 1, nullptr);
  EXPECT_THROW(adamw(e, {1e-3, .9, .999, 1e-8, 0, 0, 1}, p, p, m, v), Error);
}

}  // namespace
}  // namespace qlora
