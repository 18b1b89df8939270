#include "quant/quantize4.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "quant/blockwise8.h"
#include "quant/codebook.h"
#include "tests/quant/same_bits.h"
#include "tests/support/golden_tensors.h"

namespace qlora {
namespace {

DType dtype_of_file(const std::string& name) {
  if (name == "F32") return DType::f32;
  return name == "BF16" ? DType::bf16 : DType::f16;
}

WeightView view_of(Format format, int64_t rows, int64_t cols, int block, const std::vector<uint8_t>& packed) {
  WeightView w;
  w.format = format;
  w.rows = rows;
  w.cols = cols;
  w.block_size = block;
  w.data = packed.data();
  return w;
}

// Every row through decode_row, rounded to `type`.
std::vector<float> decode_all(const WeightView& w, DType type = DType::f32) {
  std::vector<float> out(static_cast<size_t>(w.elements()));
  for (int64_t r = 0; r < w.rows; ++r) decode_row(w, r, 0, w.cols, out.data() + r * w.cols);
  for (float& v : out) v = round_to(type, v);
  return out;
}

std::vector<float> normal_values(size_t n, uint32_t seed, float sigma = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, sigma);
  std::vector<float> v(n);
  for (float& x : v) x = normal(random);
  return v;
}

// One key CASE.DTYPE.TYPE.bsN of the fixtures.
void check_case(const golden::Tensors& t, const std::string& input_key, const std::string& key, Format format,
                int block) {
  SCOPED_TRACE(key);
  const std::vector<float> input = t.f32(input_key);
  const DType type = dtype_of_file(t.dtype(input_key));
  const int64_t n = t.count(input_key), blocks = t.count(key + ".absmax");
  const auto& shape = t.shape(input_key);

  std::vector<uint8_t> packed(static_cast<size_t>((n + 1) / 2));
  std::vector<float> absmax(static_cast<size_t>(blocks));
  ASSERT_EQ(quantize4(format, input.data(), n, block, packed.data(), absmax.data()), -1);
  EXPECT_TRUE(same_bits(packed, t.u8(key + ".packed")));
  EXPECT_TRUE(same_bits(absmax, t.f32(key + ".absmax")));

  WeightView w = view_of(format, shape[0], shape[1], block, packed);
  w.absmax = absmax.data();
  if (t.has(key + ".dequant")) {
    EXPECT_TRUE(same_bits(decode_all(w, type), t.f32(key + ".dequant")));
  }

  const float offset = t.f32(key + ".dq.offset")[0];
  EXPECT_EQ(absmax_offset(absmax.data(), blocks), offset);
  std::vector<uint8_t> codes(absmax.size());
  std::vector<float> nested((absmax.size() + 255) / 256);
  quantize_absmax(absmax.data(), blocks, offset, codes.data(), nested.data());
  EXPECT_TRUE(same_bits(codes, t.u8(key + ".dq.absmax")));
  EXPECT_TRUE(same_bits(nested, t.f32(key + ".dq.nested_absmax")));

  w.absmax = nullptr;
  w.absmax_codes = codes.data();
  w.nested_absmax = nested.data();
  w.nested_offset = offset;
  w.code_map = dynamic_map(true).data();
  if (t.has(key + ".dq.dequant")) {
    EXPECT_TRUE(same_bits(decode_all(w, type), t.f32(key + ".dq.dequant")));
  }
}

class Fixtures : public ::testing::TestWithParam<const char*> {};

TEST_P(Fixtures, EveryBlockEqualsTheRule) {
  const golden::Tensors t(std::string("quant/blockwise4_") + GetParam() + ".safetensors");
  int cases = 0;
  for (const std::string& key : t.keys()) {
    if (!key.ends_with(".packed")) continue;
    const std::string base = key.substr(0, key.size() - 7);  // CASE.DTYPE.TYPE.bsN
    const size_t bs = base.rfind(".bs"), type = base.rfind('.', bs - 1);
    const Format format = base.substr(type + 1, bs - type - 1) == "nf4" ? Format::nf4 : Format::fp4;
    check_case(t, base.substr(0, type) + ".input", base, format, std::stoi(base.substr(bs + 3)));
    ++cases;
  }
  EXPECT_GE(cases, 12);
}

INSTANTIATE_TEST_SUITE_P(Quantize4, Fixtures, ::testing::Values("normal", "special", "small"),
                         [](const auto& info) { return std::string(info.param); });

// The rule written once more, from the format's description: sorted thresholds searched element by element.
uint8_t code_by_search(Format format, float x) {
  if (format == Format::nf4)
    return static_cast<uint8_t>(std::lower_bound(kNf4Thresholds.begin(), kNf4Thresholds.end(), x) -
                                kNf4Thresholds.begin());
  constexpr uint8_t ascending[8] = {0, 1, 6, 7, 4, 5, 2, 3};
  const auto rank =
      std::lower_bound(kFp4Thresholds.begin(), kFp4Thresholds.end(), std::fabs(x)) - kFp4Thresholds.begin();
  return static_cast<uint8_t>(ascending[rank] + (x < 0 ? 8 : 0));
}

TEST(Quantize4, AnyShapeEqualsTheRuleElementByElement) {
  std::mt19937 random(11);
  for (int trial = 0; trial < 200; ++trial) {
    const Format format = trial % 2 ? Format::nf4 : Format::fp4;
    const int block = 32 << random() % 8;
    const int64_t n = 1 + random() % 9000;
    std::vector<float> v = normal_values(static_cast<size_t>(n), random());
    for (float& x : v) x = std::ldexp(x, static_cast<int>(random() % 40) - 20);
    std::vector<uint8_t> packed(static_cast<size_t>((n + 1) / 2), 0xcc);
    std::vector<float> absmax(static_cast<size_t>((n + block - 1) / block));
    ASSERT_EQ(quantize4(format, v.data(), n, block, packed.data(), absmax.data()), -1);
    for (int64_t i = 0; i < n; ++i) {
      const float a = absmax[i / block];
      const uint8_t q = i % 2 ? packed[i / 2] & 15 : packed[i / 2] >> 4;
      ASSERT_EQ(q, code_by_search(format, v[i] * (1.0f / a))) << "trial " << trial << " element " << i;
      ASSERT_LE(std::fabs(v[i]), a);
    }
    if (n % 2) {
      EXPECT_EQ(packed.back() & 15, format == Format::nf4 ? 7 : 0);
    }
  }
}

// Each stored value is its own nearest entry, so coding a decoded matrix again changes nothing. (FP4's code 8
// is the exception: it decodes to +0.0, which is code 0. And a block whose largest entry is not +-1 does not
// occur: the element that made absmax has code +-1.)
TEST(Quantize4, CodingTheDecodedAgainKeepsTheCodes) {
  for (const Format format : {Format::nf4, Format::fp4})
    for (const int block : {32, 64, 512, 4096}) {
      const int64_t rows = 37, cols = 101, n = rows * cols;
      const std::vector<float> v = normal_values(n, 5);
      std::vector<uint8_t> packed((n + 1) / 2), again(packed.size());
      std::vector<float> absmax((n + block - 1) / block), absmax_again(absmax.size());
      ASSERT_EQ(quantize4(format, v.data(), n, block, packed.data(), absmax.data()), -1);
      WeightView w = view_of(format, rows, cols, block, packed);
      w.absmax = absmax.data();
      const std::vector<float> decoded = decode_all(w);
      ASSERT_EQ(quantize4(format, decoded.data(), n, block, again.data(), absmax_again.data()), -1);
      EXPECT_TRUE(same_bits(absmax_again, absmax));
      if (format == Format::fp4)
        for (uint8_t& byte : packed) {
          if (byte >> 4 == 8) byte &= 0x0f;
          if ((byte & 15) == 8) byte &= 0xf0;
        }
      EXPECT_TRUE(same_bits(again, packed));
    }
}

TEST(Quantize4, NamesTheFirstElementThatIsNotFinite) {
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity(),
                          std::numeric_limits<float>::infinity()})
    for (const int64_t at : {0, 31, 64, 99}) {
      std::vector<float> v = normal_values(100, 3);
      v[at] = bad;
      v[99] = bad;
      std::vector<uint8_t> packed(50);
      std::vector<float> absmax(2);
      EXPECT_EQ(quantize4(Format::nf4, v.data(), 100, 64, packed.data(), absmax.data()), at);
    }
}

TEST(Quantize4, LargestFiniteNumbersSurvive) {
  std::vector<float> v(64, std::numeric_limits<float>::max());
  v[1] = -v[0];
  v[2] = v[0] / 2;
  std::vector<uint8_t> packed(32);
  float absmax = 0;
  ASSERT_EQ(quantize4(Format::nf4, v.data(), 64, 64, packed.data(), &absmax), -1);
  EXPECT_EQ(absmax, v[0]);
  EXPECT_EQ(packed[0], 0xf0);
  EXPECT_EQ(packed[1], 0xcf);  // 0.5 lies below 0.5017, where code 13 begins
}

// The mean absolute errors that bitsandbytes' own tests expect of N(0, 1), 1024 x 1024. The mean of 2^20
// absolute errors, each with standard deviation below 0.07, has a standard error below 7e-5; four of them.
TEST(Quantize4, MeanErrorIsTheLibrarys) {
  struct Expected {
    Format format;
    int block;
    double error;
  };
  const Expected table[] = {{Format::nf4, 64, .072798},   {Format::nf4, 128, .076831},
                            {Format::nf4, 256, .080337},  {Format::nf4, 512, .083547},
                            {Format::nf4, 1024, .086610}, {Format::nf4, 2048, .089592},
                            {Format::nf4, 4096, .092547}, {Format::fp4, 64, .096543}};
  const int64_t side = 1024, n = side * side;
  const std::vector<float> v = normal_values(n, 17);
  std::vector<uint8_t> packed(n / 2);
  for (const Expected& e : table) {
    std::vector<float> absmax(n / e.block);
    ASSERT_EQ(quantize4(e.format, v.data(), n, e.block, packed.data(), absmax.data()), -1);
    WeightView w = view_of(e.format, side, side, e.block, packed);
    w.absmax = absmax.data();
    const std::vector<float> decoded = decode_all(w);
    double sum = 0;
    for (int64_t i = 0; i < n; ++i) sum += std::fabs(decoded[i] - v[i]);
    EXPECT_NEAR(sum / n, e.error, 2.8e-4) << "block size " << e.block;
  }
}

// No element passes through more additions than 16 on each of three levels, rows / 4096 on the fourth, and 28
// for the levels, leftover vectors, columns, lanes and tail: the relative error of a sum of positive numbers.
TEST(Quantize4, TheOffsetIsTheMean) {
  for (const int64_t n : {1, 7, 8, 31, 33, 511, 513, 8192, 8200, 131072, 300001}) {
    std::vector<float> absmax = normal_values(n, 29);
    double sum = 0;
    for (float& a : absmax) sum += a = std::fabs(a) + 0.1f;
    const double mean = sum / static_cast<double>(n), depth = 48 + 28 + n / 32.0 / 4096;
    EXPECT_NEAR(absmax_offset(absmax.data(), n), mean, mean * (depth + 1) * 0x1p-24) << n;
  }
  const std::vector<float> huge(1000, 3e38f);  // their sum is no fp32, their mean is
  EXPECT_EQ(absmax_offset(huge.data(), 1000), 3e38f);
  EXPECT_EQ(absmax_offset(nullptr, 0), 0.0f);
}

// Sizes beyond the fixtures, so that every level of the sum takes part: fp32 means of a hash's numbers by the
// same order written in numpy. All four differ from the mean in fp64.
TEST(Quantize4, TheOffsetKeepsItsOrderOfAdding) {
  const std::pair<int64_t, float> pinned[] = {
      {700, 0x1.fe8f10p-2f}, {20001, 0x1.fff56ap-2f}, {300001, 0x1.ffff62p-2f}, {2109497, 0x1.fffff0p-2f}};
  for (const auto& [n, mean] : pinned) {
    std::vector<float> absmax(n);
    for (int64_t i = 0; i < n; ++i)
      absmax[i] = static_cast<float>(static_cast<uint32_t>(i) * 2654435761u >> 8) * 0x1p-24f;
    EXPECT_EQ(absmax_offset(absmax.data(), n), mean) << n;
  }
}

TEST(Quantize4, ScalesOfScalesKeepTheError) {
  const int64_t blocks = 5000;
  std::vector<float> absmax = normal_values(blocks, 23, 0.02f);
  for (float& a : absmax) a = 0.1f + std::fabs(a);
  const float offset = absmax_offset(absmax.data(), blocks);
  std::vector<uint8_t> codes(blocks);
  std::vector<float> nested((blocks + 255) / 256);
  quantize_absmax(absmax.data(), blocks, offset, codes.data(), nested.data());
  for (int64_t b = 0; b < blocks; ++b) {
    // Neighbours of the map are at most 0.01406 apart above 0.1, and its ends at 1.0 and -0.993.
    const float rebuilt = dynamic_map(true)[codes[b]] * nested[b / 256] + offset;
    EXPECT_NEAR(rebuilt, absmax[b], 0.0071 * nested[b / 256] + 1e-8);
  }
}

}  // namespace
}  // namespace qlora
