#include "kernels/gated_act/gated_act.h"

#include <gtest/gtest.h>

#include "kernels/gated_act/gated_act_ref.h"
#include "tests/support/body.h"
#include "tests/support/dual.h"

namespace qlora {
namespace {

using testing::Dual;
using testing::kU;
using testing::Tensor;

struct Shape {
  int64_t rows, cols;
};
constexpr Shape kShapes[] = {{1, 1}, {3, 7}, {2, 16}, {4, 67}, {33, 1536}};
constexpr Activation kActs[] = {Activation::silu, Activation::gelu_tanh};

// Relative error of act(x) = x * s(z) in fp32, z = x or the tanh argument doubled: z is off by 4 u |z|, which
// exp turns into a relative error, and a dozen roundings of u follow.
double gate_error(Activation act, double x) {
  const double z =
      act == Activation::silu ? x : 2 * ref::kGeluC * (std::abs(x) + ref::kGeluCubic * std::abs(x * x * x));
  return kU * (12 + 4 * std::abs(z));
}

// 1 - s loses its relative precision where s is near 1: an absolute error, times x's own factor.
double slope_error(Activation act, double x) {
  const double steep = act == Activation::silu ? 1 : 2 * ref::kGeluC * (1 + 3 * ref::kGeluCubic * x * x);
  return kU * (12 + 16 * std::abs(x) * steep) + gate_error(act, x) * std::min(1., std::abs(x) * steep);
}

// Gates from -100 (where exp overflows its range) to 100.
Tensor gates(DType t, int64_t rows, int64_t cols) {
  Tensor g = Tensor::normal(t, rows, cols, 1, 3);
  const double extremes[] = {-100, 100, 0, -20, 20, -88.5, 1e-20};
  for (int64_t j = 0; j < cols && j < 7; ++j) g.set(rows - 1, j, extremes[j]);
  return g;
}

template <class F>
void for_each_case(const F& f) {
  for (const testing::Body& body : testing::bodies()) {
    const testing::WithBody with(body);
    for (Shape s : kShapes)
      for (Activation act : kActs)
        for (DType t : {DType::f32, DType::bf16}) {
          SCOPED_TRACE(cat(body.name(), " ", s.rows, " x ", s.cols, " ", name_of(t)));
          f(s, act, t);
        }
  }
}

TEST(GatedAct, ForwardAgreesWithTheDefinition) {
  for_each_case([](Shape s, Activation act, DType t) {
    const Tensor gate = gates(t, s.rows, s.cols), up = Tensor::normal(t, s.rows, s.cols, 2);
    Tensor h(t, s.rows, s.cols);
    testing::run_planned(2, [&](Exec& e) { gated_act_forward(e, act, gate, up, h.mat()); });
    const std::vector<double> g = gate.values(), u = up.values(), got = h.values();
    std::vector<double> expected(g.size());
    ref::gated_act_forward(static_cast<int64_t>(g.size()), act, g.data(), u.data(), expected.data());
    for (size_t i = 0; i < g.size(); ++i)
      ASSERT_TRUE(testing::close(got[i], expected[i],
                                 gate_error(act, g[i]) * std::abs(expected[i]) + 1e-35 * std::abs(u[i]), t))
          << "gate " << g[i] << ": " << got[i] << " not " << expected[i];
    testing::expect_clean(h);
  });
}

TEST(GatedAct, BackwardAgreesWithTheDefinition) {
  for_each_case([](Shape s, Activation act, DType t) {
    const Tensor gate = gates(t, s.rows, s.cols), up = Tensor::normal(t, s.rows, s.cols, 2);
    const Tensor d_h = Tensor::normal(t, s.rows, s.cols, 3);
    Tensor d_gate(t, s.rows, s.cols), d_up(t, s.rows, s.cols);
    testing::run_planned(
        2, [&](Exec& e) { gated_act_backward(e, act, d_h, gate, up, d_gate.mat(), d_up.mat()); });
    const std::vector<double> g = gate.values(), u = up.values(), d = d_h.values();
    const std::vector<double> got_gate = d_gate.values(), got_up = d_up.values();
    std::vector<double> dg(g.size()), du(g.size());
    ref::gated_act_backward(static_cast<int64_t>(g.size()), act, d.data(), g.data(), u.data(), dg.data(),
                            du.data());
    for (size_t i = 0; i < g.size(); ++i) {
      ASSERT_TRUE(testing::close(got_up[i], du[i],
                                 gate_error(act, g[i]) * std::abs(du[i]) + 1e-35 * std::abs(d[i]), t))
          << "gate " << g[i] << ": " << got_up[i] << " not " << du[i];
      ASSERT_TRUE(testing::close(got_gate[i], dg[i], slope_error(act, g[i]) * std::abs(d[i] * u[i]), t))
          << "gate " << g[i] << ": " << got_gate[i] << " not " << dg[i];
    }
    testing::expect_clean(d_gate);
    testing::expect_clean(d_up);
  });
}

TEST(GatedAct, Aliases) {
  for (const testing::Body& body : testing::bodies()) {
    const testing::WithBody with(body);
    const Tensor gate = gates(DType::bf16, 3, 37), up = Tensor::normal(DType::bf16, 3, 37, 2);
    const Tensor d_h = Tensor::normal(DType::bf16, 3, 37, 3);
    Tensor h = gate, d_gate = gate, d_up = gate;
    Exec e(body.device, 1, nullptr);
    gated_act_forward(e, Activation::silu, gate, up, h.mat());
    gated_act_backward(e, Activation::silu, d_h, gate, up, d_gate.mat(), d_up.mat());
    Tensor over_gate = gate, over_up = up, g1 = gate, u1 = up, g2 = gate, d2 = d_h;
    gated_act_forward(e, Activation::silu, over_gate, up, over_gate.mat());
    gated_act_forward(e, Activation::silu, gate, over_up, over_up.mat());
    gated_act_backward(e, Activation::silu, d_h, g1, u1, g1.mat(), u1.mat());
    gated_act_backward(e, Activation::silu, d2, g2, up, g2.mat(), d2.mat());
    if (e.on_cuda()) e.stream().synchronize();
    EXPECT_TRUE(over_gate == h && over_up == h);
    EXPECT_TRUE(g1 == d_gate && u1 == d_up && g2 == d_gate && d2 == d_up);
  }
}

// Against the forms that the papers give.
TEST(GatedAct, ReferenceValues) {
  const double tanh_form =
      .5 * 1.25 * (1 + std::tanh(ref::kGeluC * (1.25 + ref::kGeluCubic * 1.25 * 1.25 * 1.25)));
  EXPECT_NEAR(ref::activation(Activation::gelu_tanh, 1.25), tanh_form, 1e-15);
  EXPECT_NEAR(ref::activation(Activation::silu, -2.), -2 / (1 + std::exp(2.)), 1e-15);
}

TEST(GatedAct, ReferenceGradient) {
  for (Activation act : kActs)
    for (double x : {-3., -.4, 0., .7, 2.5})
      for (double u : {-1.2, .6}) {
        double dg = 0, du = 0;
        const double d = 1.7;
        ref::gated_act_backward(1, act, &d, &x, &u, &dg, &du);
        const auto h = [&](Dual gate, Dual up) {
          Dual out;
          ref::gated_act_forward(1, act, &gate, &up, &out);
          return out.d * d;
        };
        EXPECT_NEAR(dg, h(Dual(x, 1), Dual(u)), 1e-14);
        EXPECT_NEAR(du, h(Dual(x), Dual(u, 1)), 1e-14);
      }
}

}  // namespace
}  // namespace qlora
