#include "quant/blockwise8.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "quant/codebook.h"
#include "quant/int8.h"
#include "quant/weight_view.h"
#include "tests/quant/same_bits.h"
#include "tests/support/golden_tensors.h"

namespace qlora {
namespace {

TEST(Blockwise8, EqualsTheRule) {
  const golden::Tensors t("quant/blockwise8.safetensors");
  for (const std::string name : {"signed", "unsigned"}) {
    const float* map = dynamic_map(name == "signed").data();
    for (const std::string kind : {"normal", "wide", "tail", "zero", "entries", "ties"}) {
      const std::string key = name + "." + kind;
      SCOPED_TRACE(key);
      const std::vector<float> input = t.f32(key + ".input");
      const auto n = static_cast<int64_t>(input.size());
      std::vector<uint8_t> q(input.size());
      std::vector<float> absmax((input.size() + 255) / 256), decoded(input.size());
      ASSERT_EQ(quantize8(map, input.data(), n, q.data(), absmax.data()), -1);
      EXPECT_TRUE(same_bits(q, t.u8(key + ".q")));
      EXPECT_TRUE(same_bits(absmax, t.f32(key + ".absmax")));
      dequantize8(map, q.data(), absmax.data(), n, decoded.data());
      EXPECT_TRUE(same_bits(decoded, t.f32(key + ".dequant")));
    }
  }
}

// For any x no entry is nearer than the one found, beyond the rounding of a midpoint to fp32.
TEST(Blockwise8, NoEntryIsNearer) {
  std::mt19937 random(2);
  for (const bool with_sign : {true, false}) {
    const auto& map = dynamic_map(with_sign);
    std::uniform_real_distribution<float> exponent(-25, 0);
    for (int trial = 0; trial < 20000; ++trial) {
      float x = std::exp2(exponent(random));
      if (with_sign && random() % 2) x = -x;
      double best = 4;
      for (float entry : map) best = std::min(best, std::fabs(static_cast<double>(entry) - x));
      const double found = std::fabs(static_cast<double>(map[nearest_entry(map.data(), x)]) - x);
      ASSERT_LE(found, best + 2 * std::fabs(x) * 0x1p-24) << x;
    }
    for (int i = 0; i < 256; ++i) EXPECT_EQ(nearest_entry(map.data(), map[i]), i);
  }
}

TEST(Blockwise8, CodingTheDecodedAgainKeepsTheCodes) {
  std::mt19937 random(8);
  std::normal_distribution<float> normal(0, 3);
  std::vector<float> v(1500), decoded(v.size());
  for (float& x : v) x = normal(random);
  v[0] = 20;  // so that each block's absmax is positive: its entry is exactly 1.0
  for (size_t b = 256; b < v.size(); b += 256) v[b] = 20;
  std::vector<uint8_t> q(v.size()), again(v.size());
  std::vector<float> absmax(6), absmax_again(6);
  const float* map = dynamic_map(true).data();
  ASSERT_EQ(quantize8(map, v.data(), 1500, q.data(), absmax.data()), -1);
  dequantize8(map, q.data(), absmax.data(), 1500, decoded.data());
  ASSERT_EQ(quantize8(map, decoded.data(), 1500, again.data(), absmax_again.data()), -1);
  EXPECT_TRUE(same_bits(again, q));
  EXPECT_TRUE(same_bits(absmax_again, absmax));
}

TEST(Blockwise8, NamesTheFirstElementThatIsNotFinite) {
  std::vector<float> v(600, 1.0f), absmax(3);
  std::vector<uint8_t> q(600);
  v[511] = std::numeric_limits<float>::infinity();
  v[599] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(quantize8(dynamic_map(true).data(), v.data(), 600, q.data(), absmax.data()), 511);
}

TEST(Blockwise8, AbsmaxBelowTheNormalsIsZero) {
  const float below[] = {0x1p-127f, -0x1.fffffcp-127f, 0.0f}, at[] = {0x1p-127f, -0x1p-126f};
  EXPECT_EQ(block_absmax(below, 3), 0.0f);
  EXPECT_EQ(block_absmax(at, 2), 0x1p-126f);
}

TEST(Int8, RowsEqualTheLibrary) {
  const golden::Tensors t("quant/blockwise8.safetensors");
  const std::vector<float> input = t.f32("int8.weight.input");
  const int64_t rows = t.shape("int8.weight.input")[0], cols = t.shape("int8.weight.input")[1];
  std::vector<int8_t> q(input.size());
  std::vector<float> scb(rows), decoded(input.size());
  for (int64_t r = 0; r < rows; ++r)
    ASSERT_EQ(quantize_int8_row(input.data() + r * cols, cols, q.data() + r * cols, &scb[r]), -1);
  EXPECT_TRUE(same_bits(q, t.i8("int8.weight.q")));
  EXPECT_TRUE(same_bits(scb, t.f32("int8.weight.SCB")));
  WeightView w;
  w.format = Format::int8;
  w.rows = rows;
  w.cols = cols;
  w.data = q.data();
  w.absmax = scb.data();
  for (int64_t r = 0; r < rows; ++r) decode_row(w, r, 0, cols, decoded.data() + r * cols);
  EXPECT_TRUE(same_bits(decoded, t.f32("int8.weight.dequant")));
}

// The activation fixture: outliers of 6 and more are cut out of a row before its scale is taken.
TEST(Int8, RowsWithoutTheirOutliersEqualTheLibrary) {
  const golden::Tensors t("quant/blockwise8.safetensors");
  std::vector<float> input = t.f32("int8.activation.input");
  const int64_t rows = t.shape("int8.activation.input")[0], cols = t.shape("int8.activation.input")[1];
  for (float& v : input)
    if (std::fabs(v) >= 6) v = 0;
  std::vector<int8_t> q(input.size());
  std::vector<float> scb(rows);
  for (int64_t r = 0; r < rows; ++r)
    ASSERT_EQ(quantize_int8_row(input.data() + r * cols, cols, q.data() + r * cols, &scb[r]), -1);
  for (int32_t c : t.i32("int8.activation.outlier_columns"))
    for (int64_t r = 0; r < rows; ++r) q[r * cols + c] = 0;
  EXPECT_TRUE(same_bits(q, t.i8("int8.activation.q")));
  EXPECT_TRUE(same_bits(scb, t.f32("int8.activation.SCB")));
}

TEST(Int8, ValuesAreCastToHalfFirst) {
  // 1 + 2^-11 is halfway between two halves and goes to 1; 2^-26 is less than half of the smallest.
  const float v[] = {1 + 0x1p-11f, 0x1p-26f, -0.5f};
  int8_t q[3];
  float scb = 0;
  ASSERT_EQ(quantize_int8_row(v, 3, q, &scb), -1);
  EXPECT_EQ(scb, 1.0f);
  EXPECT_EQ(q[0], 127);
  EXPECT_EQ(q[1], 0);
  EXPECT_EQ(q[2], -64);  // -63.5, the tie to even
  // 0.5 + 2^-13 is the half 0.5: with SCB 127 a tie, to 0.
  const float tie[] = {127, 0.5f + 0x1p-13f, -1.5f - 0x1p-13f};
  ASSERT_EQ(quantize_int8_row(tie, 3, q, &scb), -1);
  EXPECT_EQ(q[1], 0);
  EXPECT_EQ(q[2], -2);
}

TEST(Int8, NamesTheFirstValueThatHalfCannotHold) {
  int8_t q[3];
  float scb = 0;
  const float large[] = {1, 65519, 65520}, nan[] = {NAN, 1, 1};
  EXPECT_EQ(quantize_int8_row(large, 3, q, &scb), 2);
  EXPECT_EQ(quantize_int8_row(nan, 3, q, &scb), 0);
  EXPECT_EQ(quantize_int8_row(large, 2, q, &scb), -1);
  EXPECT_EQ(scb, 65504.0f);
}

}  // namespace
}  // namespace qlora
