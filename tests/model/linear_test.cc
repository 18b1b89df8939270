// LoRA linears against their definition in double: y, S and every gradient, with dropout and without.
#include "model/linear.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "kernels/dropout/dropout_ref.h"
#include "tests/support/run_op.h"
#include "tests/support/tensor.h"

namespace qlora {
namespace {

using testing::kU;
using testing::Tensor;
using Values = std::vector<double>;

constexpr int64_t kRows = 9, kIn = 21;
struct MemberSpec {
  int64_t out;
  int rank;
  float scale;
  uint32_t module;
  bool bias;
};
// The middle one is not adapted: the columns of S and of A must not shift.
constexpr std::array<MemberSpec, 3> kMembers{{{7, 3, .5f, 4, true}, {5, 0, 1, 5, false}, {6, 2, 2, 6, true}}};
constexpr int64_t kRankSum = 5;

Values normal(int64_t count, uint64_t seed) { return Tensor::normal(DType::f32, 1, count, seed).values(); }
std::vector<float> floats(const Values& v) { return {v.begin(), v.end()}; }

// Everything that the definition reads; row-major.
struct Inputs {
  Values x, residual, a;
  std::array<Values, 3> w, bias, b, dy;
  std::vector<uint64_t> places;
  float p = 0;
  double kept(int member, int64_t row, int64_t col) const {
    const DropoutKey key{11, 3, kMembers[static_cast<size_t>(member)].module, p};
    const bool on = ref::dropout_kept(key, places[static_cast<size_t>(row)], static_cast<uint32_t>(col));
    return on ? 1 / (1 - static_cast<double>(p)) : 0;
  }
};

Inputs inputs(float p, DType t) {
  const auto rounded = [&](Values v) {
    for (double& d : v) d = t == DType::bf16 ? static_cast<float>(bf16(static_cast<float>(d))) : d;
    return v;
  };
  Inputs in;
  in.p = p;
  in.x = rounded(normal(kRows * kIn, 1));
  in.residual = normal(kRows * kMembers[0].out, 2);
  in.a = normal(kRankSum * kIn, 3);
  for (size_t i = 0; i < 3; ++i) {
    const MemberSpec& m = kMembers[i];
    in.w[i] = normal(m.out * kIn, 10 + i);
    in.bias[i] = m.bias ? normal(m.out, 20 + i) : Values(static_cast<size_t>(m.out));
    in.b[i] = normal(m.out * m.rank, 30 + i);
    in.dy[i] = rounded(normal(kRows * m.out, 40 + i));
  }
  for (uint64_t r = 0; r < kRows; ++r) in.places.push_back((r / 4 << 32) + r % 4);
  return in;
}

Inputs absolute(Inputs in) {
  const auto abs = [](Values& v) {
    for (double& d : v) d = std::abs(d);
  };
  for (Values* v : {&in.x, &in.residual, &in.a}) abs(*v);
  for (size_t i = 0; i < 3; ++i)
    for (Values* v : {&in.w[i], &in.bias[i], &in.b[i], &in.dy[i]}) abs(*v);
  return in;
}

struct Outputs {
  Values s = Values(kRows * kRankSum), da = Values(kRankSum * kIn), dx = Values(kRows * kIn);
  std::array<Values, 3> y, db;
};

Outputs definition(const Inputs& in) {
  Outputs o;
  int64_t col = 0;
  for (int i = 0; i < 3; ++i) {
    const auto n = static_cast<size_t>(i);
    const MemberSpec& m = kMembers[n];
    Values &y = o.y[n], &db = o.db[n];
    y.assign(static_cast<size_t>(kRows * m.out), 0), db.assign(static_cast<size_t>(m.out * m.rank), 0);
    for (int64_t t = 0; t < kRows; ++t) {
      for (int64_t q = 0; q < m.out; ++q) {
        y[t * m.out + q] = in.bias[n][q] + (i == 0 ? in.residual[t * m.out + q] : 0);
        for (int64_t j = 0; j < kIn; ++j) {
          y[t * m.out + q] += in.x[t * kIn + j] * in.w[n][q * kIn + j];
          o.dx[t * kIn + j] += in.dy[n][t * m.out + q] * in.w[n][q * kIn + j];
        }
      }
      for (int64_t r = 0; r < m.rank; ++r) {
        double& s = o.s[t * kRankSum + col + r];
        for (int64_t j = 0; j < kIn; ++j)
          s += in.kept(i, t, j) * in.x[t * kIn + j] * in.a[(col + r) * kIn + j];
        double ds = 0;
        for (int64_t q = 0; q < m.out; ++q) {
          const double b = in.b[n][q * m.rank + r], dy = in.dy[n][t * m.out + q];
          y[t * m.out + q] += m.scale * s * b;
          db[q * m.rank + r] += m.scale * dy * s;
          ds += m.scale * dy * b;
        }
        for (int64_t j = 0; j < kIn; ++j) {
          o.da[(col + r) * kIn + j] += ds * in.kept(i, t, j) * in.x[t * kIn + j];
          o.dx[t * kIn + j] += in.kept(i, t, j) * ds * in.a[(col + r) * kIn + j];
        }
      }
    }
    col += m.rank;
  }
  return o;
}

// At most 8 values of type t are rounded between an input and a result (weight, dropped x, S, B, y; or B, dS,
// A, dropped dx and one dx a member); fp32 sums run over at most in + out + rank + rows terms.
void expect_close(const Values& got, const Values& want, const Values& magnitude, DType t, const char* what) {
  const double relative = 8 * testing::unit_roundoff(t) + (kIn + 7 + 3 + kRows) * kU;
  ASSERT_EQ(got.size(), want.size()) << what;
  for (size_t i = 0; i < got.size(); ++i)
    ASSERT_LE(std::abs(got[i] - want[i]), relative * magnitude[i]) << what << " " << i;
}

// On every instruction set.
class LoraLinear : public ::testing::TestWithParam<std::tuple<float, DType, bool, Isa>> {
 protected:
  void SetUp() override {
    const Isa isa = std::get<Isa>(GetParam());
    if (!supported(isa)) GTEST_SKIP() << "this CPU has no " << name_of(isa);
    with_.emplace(isa);
  }

 private:
  std::optional<testing::WithIsa> with_;
};

TEST_P(LoraLinear, AgreesWithItsDefinition) {
  const auto [p, t, with_dx, isa] = GetParam();
  const Inputs in = inputs(p, t);
  const Outputs want = definition(in), magnitude = definition(absolute(in));

  constexpr float kBefore = .25f;  // gradients are added to what was there
  std::array<std::vector<float>, 3> w, bias, b, db;
  const std::vector<float> a = floats(in.a);
  std::vector<float> da(a.size(), kBefore);
  LinearGroup g;
  g.count = 3, g.in = kIn, g.rank_sum = kRankSum, g.a = a.data(), g.da = da.data();
  std::vector<Tensor> y, dy;
  int64_t col = 0;
  for (size_t i = 0; i < 3; ++i) {
    const MemberSpec& spec = kMembers[i];
    w[i] = floats(in.w[i]), bias[i] = floats(in.bias[i]), b[i] = floats(in.b[i]);
    db[i].assign(b[i].size(), kBefore);
    LinearGroup::Member& m = g.member[i];
    m.w.format = Format::f32, m.w.rows = spec.out, m.w.cols = kIn, m.w.data = w[i].data();
    m.bias = spec.bias ? bias[i].data() : nullptr;
    m.rank = spec.rank, m.s_col = col, m.scale = spec.scale, m.b = b[i].data(), m.db = db[i].data();
    m.module = spec.module;
    col += spec.rank;
    y.emplace_back(t, kRows, spec.out);
    dy.push_back(Tensor::of(t, kRows, spec.out, in.dy[i]));
  }
  const Tensor x = Tensor::of(t, kRows, kIn, in.x),
               residual = Tensor::of(DType::f32, kRows, kMembers[0].out, in.residual);
  Tensor s(t, kRows, kRankSum), dx(t, kRows, kIn);
  const DropoutRows drop{{11, 3, 0, p}, in.places};
  testing::run_planned(2, [&](Exec& e) {
    const std::array<Mat, 3> out{y[0].mat(), y[1].mat(), y[2].mat()};
    linear_forward(e, g, drop, x, s.mat(), out, residual);
    const std::array<ConstMat, 3> d{dy[0], dy[1], dy[2]};
    linear_backward(e, g, drop, x, s, d, with_dx ? dx.mat() : Mat{});
  });

  const auto added = [](const std::vector<float>& after) {
    Values v(after.begin(), after.end());
    for (double& d : v) d -= kBefore;
    return v;
  };
  const auto more = [](Values m) {  // the sum with what was there is rounded too
    for (double& d : m) d += kBefore;
    return m;
  };
  expect_close(s.values(), want.s, magnitude.s, t, "S");
  expect_close(added(da), want.da, more(magnitude.da), t, "dA");
  for (size_t i = 0; i < 3; ++i) {
    expect_close(y[i].values(), want.y[i], magnitude.y[i], t, "y");
    expect_close(added(db[i]), want.db[i], more(magnitude.db[i]), t, "dB");
    EXPECT_TRUE(y[i].gaps_intact());
  }
  if (with_dx) expect_close(dx.values(), want.dx, magnitude.dx, t, "dx");
  EXPECT_TRUE(s.gaps_intact() && dx.gaps_intact());
}

INSTANTIATE_TEST_SUITE_P(Cases, LoraLinear,
                         ::testing::Combine(::testing::Values(0.f, .4f),
                                            ::testing::Values(DType::f32, DType::bf16), ::testing::Bool(),
                                            ::testing::ValuesIn(kIsas)),
                         [](const auto& info) {
                           return std::string(std::get<0>(info.param) > 0 ? "dropout" : "whole") +
                                  (std::get<1>(info.param) == DType::f32 ? "_fp32" : "_bf16") +
                                  (std::get<2>(info.param) ? "" : "_without_dx") + "_" +
                                  name_of(std::get<Isa>(info.param));
                         });

}  // namespace
}  // namespace qlora
