#include "quant/weight_view.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "quant/codebook.h"
#include "tests/quant/same_bits.h"

namespace qlora {
namespace {

// A matrix of random bytes in any format, with what a view needs.
struct RandomWeight {
  std::vector<uint8_t> data, codes;
  std::vector<float> absmax, nested;
  WeightView view;

  RandomWeight(Format format, int64_t rows, int64_t cols, int block, bool double_quant, uint32_t seed)
      : random(seed) {
    view.format = format;
    view.rows = rows;
    view.cols = cols;
    view.block_size = block;
    const int64_t n = rows * cols, blocks = (n + block - 1) / block;
    fill_data(format, n);
    if (format == Format::nf4 || format == Format::fp4) {
      if (double_quant) {
        codes = bytes(blocks);
        nested = scales((blocks + 255) / 256);
        view.absmax_codes = codes.data();
        view.nested_absmax = nested.data();
        view.code_map = dynamic_map(true).data();
        view.nested_offset = 0.37f;
      } else {
        absmax = scales(blocks);
      }
    } else if (format == Format::int8) {
      absmax = scales(rows);
    }
    view.data = data.data();
    view.absmax = absmax.empty() ? nullptr : absmax.data();
  }

  // The element at (row, col), straight from the format's description.
  float element(int64_t row, int64_t col) const {
    const int64_t i = row * view.cols + col;
    const float half_d = half_at(i / 32, 0);
    switch (view.format) {
      case Format::f32:
        return at<float>(4 * i);
      case Format::f16:
        return static_cast<float>(at<f16>(2 * i));
      case Format::bf16:
        return std::bit_cast<float>(static_cast<uint32_t>(at<uint16_t>(2 * i)) << 16);
      case Format::nf4:
        return kNf4[nibble(i)] * scale(i / view.block_size);
      case Format::fp4:
        return kFp4[nibble(i)] * scale(i / view.block_size);
      case Format::int8:
        return static_cast<float>(static_cast<int8_t>(data[i])) * absmax[row] * (1.0f / 127.0f);
      case Format::q4_0:
        return half_d * static_cast<float>(gguf_nibble(i, 18, 2) - 8);
      case Format::q4_1: {
        const float product = half_d * static_cast<float>(gguf_nibble(i, 20, 4));
        return product + half_at(i / 32, 2);
      }
      case Format::q8_0:
        return half_d * static_cast<float>(static_cast<int8_t>(data[i / 32 * 34 + 2 + i % 32]));
    }
    return NAN;
  }

 private:
  std::mt19937 random;
  int gguf_bytes() const { return view.format == Format::q4_0 ? 18 : view.format == Format::q4_1 ? 20 : 34; }
  bool gguf() const { return view.format >= Format::q4_0; }
  template <class T>
  T at(int64_t byte) const {
    T v;
    std::memcpy(&v, data.data() + byte, sizeof v);
    return v;
  }
  float half_at(int64_t block, int64_t byte) const {
    return gguf() ? static_cast<float>(at<f16>(block * gguf_bytes() + byte)) : 0.0f;
  }
  int nibble(int64_t i) const { return i % 2 == 0 ? data[i / 2] >> 4 : data[i / 2] & 15; }
  int gguf_nibble(int64_t i, int64_t block_bytes, int64_t header) const {
    const uint8_t byte = data[i / 32 * block_bytes + header + i % 16];
    return i % 32 < 16 ? byte & 15 : byte >> 4;
  }
  float scale(int64_t b) const {
    if (codes.empty()) return absmax[b];
    const float product = dynamic_map(true)[codes[b]] * nested[b / 256];
    return product + view.nested_offset;
  }
  std::vector<uint8_t> bytes(int64_t n) {
    std::vector<uint8_t> out(static_cast<size_t>(n));
    for (uint8_t& b : out) b = static_cast<uint8_t>(random());
    return out;
  }
  std::vector<float> scales(int64_t n) {
    std::vector<float> out(static_cast<size_t>(n));
    for (float& s : out) s = 0.01f + static_cast<float>(random() % 1000) * 1e-3f;
    return out;
  }
  template <class T>
  void fill(int64_t n) {
    std::normal_distribution<float> normal;
    data.resize(static_cast<size_t>(n) * sizeof(T));
    for (int64_t i = 0; i < n; ++i) {
      const T v{normal(random)};
      std::memcpy(data.data() + i * static_cast<int64_t>(sizeof(T)), &v, sizeof v);
    }
  }
  void fill_data(Format format, int64_t n) {
    if (format == Format::f32) return fill<float>(n);
    if (format == Format::f16) return fill<f16>(n);
    if (format == Format::bf16) return fill<bf16>(n);
    if (format == Format::int8) {
      data = bytes(n);
      return;
    }
    if (!gguf()) {
      data = bytes((n + 1) / 2);
      return;
    }
    data = bytes(n / 32 * gguf_bytes());
    std::normal_distribution<float> normal;
    for (int64_t b = 0; b < n / 32; ++b)  // finite headers over the random bytes
      for (int h = 0; h < (format == Format::q4_1 ? 2 : 1); ++h) {
        const f16 v{normal(random)};
        std::memcpy(data.data() + b * gguf_bytes() + 2 * h, &v, 2);
      }
  }
};

// GGUF blocks come out as the bf16 weights that they stand for.
float as_taken(const WeightView& w, float f) { return is_gguf(w.format) ? round_to(DType::bf16, f) : f; }

struct Kind {
  Format format;
  bool double_quant;
  const char* name;
};

class WeightViewFormats : public ::testing::TestWithParam<Kind> {
 protected:
  RandomWeight make(std::mt19937& random) const {
    const int64_t cols = GetParam().format >= Format::q4_0 ? 32 * (1 + random() % 6) : 1 + random() % 300;
    return {GetParam().format,       static_cast<int64_t>(1 + random() % 60), cols, 32 << random() % 4,
            GetParam().double_quant, static_cast<uint32_t>(random())};
  }
};

TEST_P(WeightViewFormats, AnySubRangeIsItsElements) {
  std::mt19937 random(41);
  for (int trial = 0; trial < 60; ++trial) {
    const RandomWeight w = make(random);
    for (int range = 0; range < 20; ++range) {
      const int64_t row = random() % w.view.rows, col = random() % w.view.cols;
      const int64_t count = random() % (w.view.cols - col + 1);
      std::vector<float> out(count + 1, -77.0f), expected(count + 1, -77.0f);
      for (int64_t i = 0; i < count; ++i) expected[i] = as_taken(w.view, w.element(row, col + i));
      decode_row(w.view, row, col, count, out.data());
      ASSERT_TRUE(same_bits(out, expected))
          << "[" << w.view.rows << ", " << w.view.cols << "] blocks of " << w.view.block_size << ", row "
          << row << ", from " << col << ", " << count;
    }
  }
}

TEST_P(WeightViewFormats, ScaleMultipliesTheDecoded) {
  std::mt19937 random(43);
  RandomWeight w = make(random);
  w.view.scale = 0.3f;
  std::vector<float> out(w.view.cols), expected(w.view.cols);
  for (int64_t c = 0; c < w.view.cols; ++c) expected[c] = as_taken(w.view, w.element(0, c) * 0.3f);
  decode_row(w.view, 0, 0, w.view.cols, out.data());
  EXPECT_TRUE(same_bits(out, expected));
}

TEST_P(WeightViewFormats, StoredBytesCountsEveryPart) {
  std::mt19937 random(47);
  for (int trial = 0; trial < 20; ++trial) {
    const RandomWeight w = make(random);
    const size_t bytes = w.data.size() + w.codes.size() + 4 * (w.absmax.size() + w.nested.size());
    EXPECT_EQ(w.view.stored_bytes(), static_cast<double>(bytes));
  }
}

TEST_P(WeightViewFormats, ARangeOutsideIsRefused) {
  std::mt19937 random(53);
  const RandomWeight w = make(random);
  const int64_t rows = w.view.rows, cols = w.view.cols;
  std::vector<float> out(cols + 1);
  EXPECT_THROW(decode_row(w.view, rows, 0, 1, out.data()), Error);
  EXPECT_THROW(decode_row(w.view, -1, 0, 1, out.data()), Error);
  EXPECT_THROW(decode_row(w.view, 0, -1, 1, out.data()), Error);
  EXPECT_THROW(decode_row(w.view, 0, 1, cols, out.data()), Error);
  EXPECT_THROW(decode_row(w.view, 0, 0, -1, out.data()), Error);
}

INSTANTIATE_TEST_SUITE_P(Formats, WeightViewFormats,
                         ::testing::Values(Kind{Format::f32, false, "f32"}, Kind{Format::f16, false, "f16"},
                                           Kind{Format::bf16, false, "bf16"}, Kind{Format::nf4, false, "nf4"},
                                           Kind{Format::nf4, true, "nf4_dq"}, Kind{Format::fp4, false, "fp4"},
                                           Kind{Format::fp4, true, "fp4_dq"},
                                           Kind{Format::int8, false, "int8"},
                                           Kind{Format::q4_0, false, "q4_0"},
                                           Kind{Format::q4_1, false, "q4_1"},
                                           Kind{Format::q8_0, false, "q8_0"}),
                         [](const auto& info) { return info.param.name; });

// By hand: d = 0.5 (half 0x3800), m = -1 (half 0xbc00); byte 0 is 0xa3, all others 0x88.
TEST(WeightView, GgufBlocksByHand) {
  std::vector<uint8_t> q4_0(18, 0x88), q4_1(20, 0x88);
  q4_0[0] = q4_1[0] = 0x00;
  q4_0[1] = q4_1[1] = 0x38;
  q4_1[2] = 0x00;
  q4_1[3] = 0xbc;
  q4_0[2] = q4_1[4] = 0xa3;
  WeightView w;
  w.rows = 1;
  w.cols = 32;
  float out[32];
  w.format = Format::q4_0;
  w.data = q4_0.data();
  decode_row(w, 0, 0, 32, out);
  EXPECT_EQ(out[0], 0.5f * (3 - 8));
  EXPECT_EQ(out[16], 0.5f * (10 - 8));
  EXPECT_EQ(out[1], 0.0f);
  w.format = Format::q4_1;
  w.data = q4_1.data();
  decode_row(w, 0, 0, 32, out);
  EXPECT_EQ(out[0], 0.5f * 3 - 1);
  EXPECT_EQ(out[16], 0.5f * 10 - 1);
  EXPECT_EQ(out[31], 0.5f * 8 - 1);
}

}  // namespace
}  // namespace qlora
