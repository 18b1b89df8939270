#include <gtest/gtest.h>

#include <limits>
#include <optional>
#include <vector>

#include "quant/blockwise8.h"
#include "quant/codebook.h"
#include "tests/support/tensor.h"

namespace qlora {
namespace {

enum class SimdFunction { exp, exp2, sigmoid, tanh };

}  // namespace
}  // namespace qlora

#define QLORA_BODY "kernels/common/simd_test.inl"
#include "kernels/common/for_each_isa.h"

// The vectors that every body is written in: each ISA against plain arithmetic.
namespace qlora {
namespace {

using testing::kU;

class Simd : public ::testing::TestWithParam<Isa> {
 protected:
  void SetUp() override {
    if (!supported(GetParam())) GTEST_SKIP() << "this CPU has no " << name_of(GetParam());
    with_.emplace(GetParam());
    lanes_ = QLORA_DISPATCH(simd_lanes);
  }
  std::vector<float> apply(SimdFunction f, const std::vector<float>& x) {
    std::vector<float> y(x.size());
    QLORA_DISPATCH(simd_apply, f, x.data(), y.data(), static_cast<int64_t>(x.size()));
    return y;
  }
  int lanes_ = 0;

 private:
  std::optional<testing::WithIsa> with_;
};

std::vector<float> ramp(float from, float to, int steps) {
  std::vector<float> x;
  for (int i = 0; i <= steps; ++i)
    x.push_back(from + (to - from) * static_cast<float>(i) / static_cast<float>(steps));
  return x;
}

// The polynomial is off by less than 1 u, and the last product and sum round.
TEST_P(Simd, ExpIsWithinTwoRoundings) {
  const std::vector<float> x = ramp(-87.3f, 88.3f, 200003), y = apply(SimdFunction::exp, x);
  for (size_t i = 0; i < x.size(); ++i) {
    const double expected = std::exp(static_cast<double>(x[i]));
    ASSERT_NEAR(y[i], expected, 2 * kU * expected) << x[i];
  }
}

TEST_P(Simd, Exp2IsWithinTwoRoundings) {
  const std::vector<float> x = ramp(-126, 126.9f, 200003), y = apply(SimdFunction::exp2, x);
  for (size_t i = 0; i < x.size(); ++i) {
    const double expected = std::exp2(static_cast<double>(x[i]));
    ASSERT_NEAR(y[i], expected, 2 * kU * expected) << x[i];
  }
}

TEST_P(Simd, Exp2OutsideItsRange) {
  const float infinity = std::numeric_limits<float>::infinity();
  const std::vector<float> y = apply(SimdFunction::exp2, {-infinity, -1e30f, -127, 128, 1e30f, infinity, NAN});
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(y[i] >= 0 && y[i] <= 0x1p-126f) << y[i];
  for (int i = 3; i < 6; ++i) EXPECT_TRUE(y[i] >= 0x1p127f) << y[i];
  EXPECT_TRUE(std::isnan(y[6]));
}

TEST_P(Simd, ExpOutsideItsRange) {
  const float infinity = std::numeric_limits<float>::infinity();
  const std::vector<float> y = apply(SimdFunction::exp, {-infinity, -1e30f, -88, 89, 1e30f, infinity, NAN});
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(y[i] >= 0 && y[i] < 1.2e-38f) << y[i];
  for (int i = 3; i < 6; ++i) EXPECT_TRUE(std::isfinite(y[i]) && y[i] > 2e38f) << y[i];
  EXPECT_TRUE(std::isnan(y[6]));
}

// exp of 2 u, then a sum and a quotient.
TEST_P(Simd, SigmoidIsWithinFourRoundings) {
  const std::vector<float> x = ramp(-87, 87, 100003), y = apply(SimdFunction::sigmoid, x);
  for (size_t i = 0; i < x.size(); ++i) {
    const double expected = 1 / (1 + std::exp(-static_cast<double>(x[i])));
    ASSERT_NEAR(y[i], expected, 4 * kU * expected) << x[i];
  }
}

TEST_P(Simd, TanhIsWithinFourRoundingsOfOne) {
  const std::vector<float> x = ramp(-50, 50, 100003), y = apply(SimdFunction::tanh, x);
  for (size_t i = 0; i < x.size(); ++i)
    ASSERT_NEAR(y[i], std::tanh(static_cast<double>(x[i])), 4 * kU) << x[i];
}

TEST_P(Simd, SelectRange) {
  for (int64_t begin = -3; begin <= lanes_ + 3; ++begin)
    for (int64_t end = begin; end <= lanes_ + 3; ++end) {
      float out[16];
      QLORA_DISPATCH(simd_select, begin, end, out);
      for (int i = 0; i < lanes_; ++i) EXPECT_EQ(out[i], i >= begin && i < end ? 1 : 2);
    }
  float out[16];
  QLORA_DISPATCH(simd_select, -INT64_MAX / 4, INT64_MAX / 4, out);
  for (int i = 0; i < lanes_; ++i) EXPECT_EQ(out[i], 1);
}

TEST_P(Simd, MaskSumAndMax) {
  float x[16], out[16];
  uint32_t mask[16];
  float total = 0;
  for (int i = 0; i < 16; ++i) {
    x[i] = static_cast<float>((i * 7) % 16) - 20;
    mask[i] = i % 3 == 0 ? ~0u : 0u;
  }
  for (int i = 0; i < lanes_; ++i) total += x[i];
  QLORA_DISPATCH(simd_mask, x, mask, out);
  for (int i = 0; i < lanes_; ++i) EXPECT_EQ(out[i], i % 3 == 0 ? x[i] : 0);
  EXPECT_EQ(QLORA_DISPATCH(simd_sum, x), total);
  EXPECT_EQ(QLORA_DISPATCH(simd_max, x), *std::max_element(x, x + lanes_));
}

// Reads and writes no further than they say: the arrays end there, which AddressSanitizer watches.
TEST_P(Simd, PartsStayInTheirBounds) {
  for (int64_t n = 0; n <= lanes_; ++n) {
    std::vector<float> x(n), y(n, -1);
    std::vector<bf16> x16(n), y16(n);
    for (int64_t i = 0; i < n; ++i) x16[i] = bf16(x[i] = static_cast<float>(i + 1));
    QLORA_DISPATCH(simd_copy_part, x.data(), y.data(), n);
    QLORA_DISPATCH(simd_copy_part16, x16.data(), y16.data(), n);
    EXPECT_EQ(x, y);
    for (int64_t i = 0; i < n; ++i) EXPECT_EQ(x16[i].bits, y16[i].bits);
  }
}

// Every upper half with lower halves around a tie, against the scalar rounding.
TEST_P(Simd, RoundsToBf16AsTheTypeDoes) {
  for (uint32_t upper = 0; upper < 65536; upper += 7)
    for (uint32_t lower : {0u, 1u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu}) {
      const std::vector<float> x(16, std::bit_cast<float>(upper << 16 | lower));
      bf16 y[16];
      QLORA_DISPATCH(simd_round, x.data(), y);
      for (int i = 0; i < lanes_; ++i) ASSERT_EQ(y[i].bits, bf16(x[0]).bits) << std::hex << upper << lower;
    }
}

// Every bin from its first value to its last, and every border with its neighbours, of both signs; the sign
// bit decides where nearest_entry says 0.
TEST_P(Simd, CodesAreTheNearestEntries) {
  for (const bool with_sign : {true, false}) {
    const std::array<float, 256>& map = dynamic_map(with_sign);
    const CodeTable table = make_code_table(map);
    std::vector<float> values = {0, 1e-45f, 1e-7f, std::nextafter(1.f, 2.f)};
    for (uint32_t upper = 103 << 7; upper <= 127 << 7; ++upper)
      for (const uint32_t lower : {0u, 1u, 0x7fffu, 0xffffu})
        values.push_back(std::bit_cast<float>(upper << 16 | lower));
    for (size_t k = 0; k < 255; ++k) {
      const float middle = std::abs((map[k + 1] + map[k]) * 0.5f);
      for (const float x :
           {std::abs(map[k]), middle, std::nextafter(middle, 0.f), std::nextafter(middle, 2.f)})
        values.push_back(x);
    }
    for (size_t i = 0; i < values.size(); ++i)
      for (const float x : {values[i], -values[i]}) {
        // Neighbours of another size: a lane must not see the others.
        std::vector<float> lanes(16);
        for (size_t lane = 0; lane < 16; ++lane) lanes[lane] = values[(i + lane * 37) % values.size()];
        lanes[i % static_cast<size_t>(lanes_)] = x;
        uint8_t codes[16];
        QLORA_DISPATCH(simd_codes, table, lanes.data(), codes);
        for (size_t lane = 0; lane < static_cast<size_t>(lanes_); ++lane) {
          const uint8_t nearest = nearest_entry(map.data(), lanes[lane]);
          const bool moves = with_sign && std::signbit(lanes[lane]) && nearest == 127;
          ASSERT_EQ(codes[lane], moves ? 126 : nearest) << lanes[lane] << (with_sign ? " signed" : "");
        }
      }
  }
}

TEST_P(Simd, BytesNameEntries) {
  const std::array<float, 256>& map = dynamic_map(true);
  for (int first = 0; first < 256; first += lanes_) {
    uint8_t codes[16];
    float out[16];
    for (int i = 0; i < lanes_; ++i) codes[i] = static_cast<uint8_t>(255 - first - i);
    QLORA_DISPATCH(simd_bytes, map.data(), codes, out);
    for (int i = 0; i < lanes_; ++i) EXPECT_EQ(out[i], map[codes[i]]);
  }
}

TEST_P(Simd, SelectFinite) {
  const float infinity = std::numeric_limits<float>::infinity();
  const std::vector<std::pair<float, float>> cases = {{0, 1},   {-3e38f, 1}, {3.4e38f, 1},  {1e-45f, 1},
                                                      {NAN, 2}, {-NAN, 2},   {infinity, 2}, {-infinity, 2}};
  for (size_t shift = 0; shift < cases.size(); ++shift) {
    float x[16], out[16];
    for (size_t i = 0; i < 16; ++i) x[i] = cases[(i + shift) % cases.size()].first;
    QLORA_DISPATCH(simd_finite, x, out);
    for (size_t i = 0; i < static_cast<size_t>(lanes_); ++i)
      EXPECT_EQ(out[i], cases[(i + shift) % cases.size()].second);
  }
}

INSTANTIATE_TEST_SUITE_P(Isas, Simd, ::testing::ValuesIn(kIsas),
                         [](const auto& info) { return name_of(info.param); });

}  // namespace
}  // namespace qlora
