#include "quant/quantized_weight.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "quant/codebook.h"
#include "quant/int8.h"
#include "quant/quantize4.h"
#include "tests/quant/same_bits.h"

namespace qlora {
namespace {

struct Source {
  int64_t rows, cols;
  std::vector<float> values;

  Source(int64_t rows, int64_t cols, uint32_t seed) : rows(rows), cols(cols), values(rows * cols) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal(0, 0.02f);
    for (float& v : values) v = normal(random);
  }
  RowReader reader() const {
    return [this](int64_t row, int64_t count, float* out) {
      check(row >= 0 && count > 0 && row + count <= rows, "rows ", row, "+", count);
      std::memcpy(out, values.data() + row * cols, static_cast<size_t>(count * cols) * sizeof(float));
    };
  }
};

struct Result {
  std::vector<uint8_t> data, codes;
  std::vector<float> absmax, nested;
  WeightView view;

  Result(const Source& s, const QuantizedSpec& spec, int threads, const RowReader& read) {
    const QuantizedSizes sizes = sizes_of(spec, s.rows, s.cols);
    data.assign(sizes.data, 0xcc);
    codes.assign(sizes.absmax_codes, 0xcc);
    absmax.assign(sizes.absmax, -1);
    nested.assign(sizes.nested_absmax, -1);
    view = quantize_matrix("layer.weight", spec, s.rows, s.cols, read,
                           {data.data(), absmax.data(), codes.data(), nested.data()}, threads);
    EXPECT_EQ(static_cast<double>(sizes.bytes()), s.rows * s.cols == 0 ? 0.0 : view.stored_bytes());
  }
  Result(const Source& s, const QuantizedSpec& spec, int threads) : Result(s, spec, threads, s.reader()) {}

  std::vector<float> decode() const {
    std::vector<float> out(view.elements());
    for (int64_t r = 0; r < view.rows; ++r) decode_row(view, r, 0, view.cols, out.data() + r * view.cols);
    return out;
  }
};

// Shapes that cut tasks at whole rows, at several rows, and inside rows longer than a task.
const std::pair<int64_t, int64_t> kShapes[] = {{1, 1},     {3, 5},     {1000, 128}, {77, 1001}, {129, 1536},
                                               {2, 70000}, {5, 70003}, {7, 50001},  {3, 65537}, {1, 200001}};

TEST(QuantizedWeight, StreamingEqualsTheWholeAtOnce) {
  for (const auto& [rows, cols] : kShapes)
    for (const Format format : {Format::nf4, Format::fp4})
      for (const int block : {32, 64, 4096}) {
        SCOPED_TRACE(cat(rows, " x ", cols, " blocks of ", block));
        const Source s(rows, cols, 9);
        const int64_t n = rows * cols, blocks = (n + block - 1) / block;
        std::vector<uint8_t> packed((n + 1) / 2), codes(blocks);
        std::vector<float> absmax(blocks), nested((blocks + 255) / 256);
        ASSERT_EQ(quantize4(format, s.values.data(), n, block, packed.data(), absmax.data()), -1);
        const Result plain(s, {format, block, false}, 2);
        EXPECT_TRUE(same_bits(plain.data, packed));
        EXPECT_TRUE(same_bits(plain.absmax, absmax));

        const float offset = absmax_offset(absmax.data(), blocks);
        quantize_absmax(absmax.data(), blocks, offset, codes.data(), nested.data());
        const Result twice(s, {format, block, true}, 2);
        EXPECT_TRUE(same_bits(twice.data, packed));
        EXPECT_TRUE(same_bits(twice.codes, codes));
        EXPECT_TRUE(same_bits(twice.nested, nested));
        EXPECT_EQ(twice.view.nested_offset, offset);
        EXPECT_TRUE(twice.absmax.empty());
      }
}

TEST(QuantizedWeight, ThreadsDoNotChangeABit) {
  for (const auto& [rows, cols] : kShapes)
    for (const QuantizedSpec spec :
         {QuantizedSpec{Format::nf4, 64, true}, {Format::fp4, 256, true}, {Format::int8, 64, false}}) {
      const Source s(rows, cols, 31);
      const Result one(s, spec, 1);
      for (const int threads : {2, 3, 8}) {
        const Result many(s, spec, threads);
        EXPECT_TRUE(same_bits(many.data, one.data));
        EXPECT_TRUE(same_bits(many.codes, one.codes));
        EXPECT_TRUE(same_bits(many.absmax, one.absmax));
        EXPECT_TRUE(same_bits(many.nested, one.nested));
        EXPECT_EQ(many.view.nested_offset, one.view.nested_offset);
        EXPECT_TRUE(same_bits(many.decode(), one.decode()));
      }
    }
}

TEST(QuantizedWeight, Int8RowsEqualTheRowRule) {
  for (const auto& [rows, cols] : kShapes) {
    const Source s(rows, cols, 13);
    std::vector<uint8_t> q(s.values.size());
    std::vector<float> scb(rows);
    for (int64_t r = 0; r < rows; ++r)
      ASSERT_EQ(quantize_int8_row(s.values.data() + r * cols, cols,
                                  reinterpret_cast<int8_t*>(q.data()) + r * cols, &scb[r]),
                -1);
    const Result streamed(s, {Format::int8, 64, false}, 2);
    EXPECT_TRUE(same_bits(streamed.data, q));
    EXPECT_TRUE(same_bits(streamed.absmax, scb));
  }
}

// A decoded element is off by at most half the widest gap of the codebook (NF4: 0.3038 / 2) times its scale,
// which double quantization moves by at most 0.0071 of the largest deviation from the mean.
TEST(QuantizedWeight, DecodesNearTheSource) {
  const Source s(77, 1001, 71);
  const std::vector<float> decoded = Result(s, {Format::nf4, 64, true}, 2).decode();
  for (size_t i = 0; i < decoded.size(); ++i) {
    float largest = 0;  // of the block of element i
    for (size_t j = i / 64 * 64; j < std::min(decoded.size(), i / 64 * 64 + 64); ++j)
      largest = std::max(largest, std::fabs(s.values[j]));
    ASSERT_LE(std::fabs(decoded[i] - s.values[i]), 0.1520f * largest + 0.0071f * 0.1f) << i;
  }
}

TEST(QuantizedWeight, RowsAreReadOnceWhereTasksEndOnRows) {
  for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{1000, 128}, {77, 1001}, {2, 70016}}) {
    const Source s(rows, cols, 1);
    std::vector<std::atomic<int>> seen(rows);
    const RowReader inner = s.reader();
    const RowReader counting = [&](int64_t row, int64_t count, float* out) {
      for (int64_t r = row; r < row + count; ++r) ++seen[r];
      inner(row, count, out);
    };
    const Result result(s, {Format::nf4, 64, true}, 2, counting);
    for (int64_t r = 0; r < rows; ++r) EXPECT_EQ(seen[r], 1) << rows << " x " << cols << " row " << r;
  }
}

std::string error_of(const std::function<void()>& f) {
  try {
    f();
  } catch (const std::exception& e) {
    return e.what();
  }
  return "";
}

TEST(QuantizedWeight, TheFirstBadElementSpeaks) {
  for (const Format format : {Format::nf4, Format::int8}) {
    Source s(400, 1001, 3);
    for (int64_t r = 150; r < 400; ++r) s.values[r * 1001 + 17] = NAN;
    for (const int threads : {1, 2, 4}) {
      const std::string line = error_of([&] { Result(s, {format, 64, false}, threads); });
      EXPECT_NE(line.find("layer.weight: element [150, 17] is"), std::string::npos) << line;
    }
  }
  Source s(4, 8, 3);
  s.values[9] = 1e6f;
  EXPECT_NE(error_of([&] {
              Result(s, {Format::int8, 64, false}, 2);
            }).find("[1, 1] is 1e+06, which fp16"),
            std::string::npos);
}

TEST(QuantizedWeight, TheReadersExceptionComesThrough) {
  const Source s(1000, 512, 3);
  for (const int threads : {1, 2, 4}) {
    const RowReader inner = s.reader();
    const RowReader failing = [&](int64_t row, int64_t count, float* out) {
      if (row + count > 300) throw std::out_of_range(cat("row ", row));
      inner(row, count, out);
    };
    // Tasks are 128 rows: the third one, from row 256, is the first to fail.
    EXPECT_THROW(Result(s, {Format::nf4, 64, true}, threads, failing), std::out_of_range);
    EXPECT_EQ(error_of([&] { Result(s, {Format::nf4, 64, true}, threads, failing); }), "row 256");
  }
}

TEST(QuantizedWeight, NothingIsReadAfterAFailure) {
  const Source s(1000, 512, 3);
  int64_t last = 0;
  const RowReader failing = [&](int64_t row, int64_t count, float*) {
    last = row + count;
    throw std::out_of_range("row");
  };
  EXPECT_THROW(Result(s, {Format::nf4, 64, true}, 1, failing), std::out_of_range);
  EXPECT_EQ(last, 128);
}

// The task of the first rows fails after that of the next ones has: it still is the one that speaks.
TEST(QuantizedWeight, ALaterFailureDoesNotHideAnEarlierOne) {
  const Source s(256, 512, 3);
  std::atomic<bool> second_failed{false};
  const RowReader failing = [&](int64_t row, int64_t, float*) {
    if (row == 0) {
      const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(10);
      while (!second_failed && std::chrono::steady_clock::now() < until) std::this_thread::yield();
    }
    second_failed = true;
    throw std::out_of_range(cat("row ", row));
  };
  EXPECT_EQ(error_of([&] { Result(s, {Format::nf4, 64, true}, 2, failing); }), "row 0");
}

TEST(QuantizedWeight, SpecsAndShapesThatCannotBe) {
  for (const int block : {0, 16, 48, 63, 8192, -64})
    EXPECT_THROW(sizes_of({Format::nf4, block, true}, 4, 4), Error) << block;
  EXPECT_THROW(sizes_of({Format::q4_1, 32, false}, 4, 4), Error);
  EXPECT_THROW(sizes_of({Format::nf4, 64, true}, INT64_MAX / 4, 8), Error);
  EXPECT_THROW(sizes_of({Format::int8, 64, true}, INT64_MAX / 4, 1), Error);
  EXPECT_THROW(sizes_of({Format::nf4, 64, true}, -1, 4), Error);
  EXPECT_NO_THROW(sizes_of({Format::int8, 0, true}, 4, 4));
}

TEST(QuantizedWeight, SizesByHand) {
  // 7 x 100: 700 elements, 350 bytes; 11 blocks of 64, the last of 60; one nested block.
  const QuantizedSizes twice = sizes_of({Format::nf4, 64, true}, 7, 100);
  EXPECT_EQ(twice.data, 350);
  EXPECT_EQ(twice.absmax, 0);
  EXPECT_EQ(twice.absmax_codes, 11);
  EXPECT_EQ(twice.nested_absmax, 1);
  EXPECT_EQ(twice.bytes(), 365);
  const QuantizedSizes once = sizes_of({Format::fp4, 32, false}, 5, 13);
  EXPECT_EQ(once.data, 33);
  EXPECT_EQ(once.absmax, 3);
  EXPECT_EQ(once.bytes(), 45);
  EXPECT_EQ(sizes_of({Format::int8, 64, false}, 5, 13).bytes(), 65 + 20);
  EXPECT_EQ(sizes_of({Format::nf4, 64, true}, 4096, 4096).nested_absmax, 1024);
  EXPECT_EQ(sizes_of({Format::nf4, 64, true}, 0, 64).bytes(), 0);
}

TEST(QuantizedWeight, AnEmptyMatrixIsEmpty) {
  const Source s(0, 64, 1);
  const Result r(s, {Format::nf4, 64, true}, 2);
  EXPECT_EQ(r.view.elements(), 0);
  EXPECT_EQ(r.view.nested_offset, 0.0f);
}

}  // namespace
}  // namespace qlora
