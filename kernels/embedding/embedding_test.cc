#include "kernels/embedding/embedding.h"

#include <gtest/gtest.h>

#include "kernels/embedding/embedding_ref.h"
#include "kernels/gemm/gemm_test_data.h"
#include "tests/support/body.h"

namespace qlora {
namespace {

using testing::Tensor;

const std::vector<int32_t> kIds = {3, 0, 3, 6, 1};

template <class T>
WeightView view(const std::vector<T>& data, Format format, int64_t rows, int64_t cols) {
  WeightView w;
  w.format = format;
  w.rows = rows;
  w.cols = cols;
  w.data = data.data();
  return w;
}

template <class T>
std::vector<T> table(int64_t n) {
  std::vector<T> out;
  for (double x : Tensor::normal(dtype_of<T>, 1, n, 1).values()) out.push_back(T(static_cast<float>(x)));
  return out;
}

// One product: exact before its rounding to fp32, and to bf16 after that.
template <class T>
void expect_rows(Format format) {
  for (const testing::Body& body : testing::bodies()) {
    const testing::WithBody with(body);
    for (int64_t cols : {1, 17, 512, 700})
      for (DType t : {DType::f32, DType::bf16}) {
        const std::vector<T> data = table<T>(7 * cols);
        std::vector<double> decoded;
        for (T x : data) decoded.push_back(static_cast<float>(x));
        Tensor y(t, static_cast<int64_t>(kIds.size()), cols);
        testing::run_planned(
            2, [&](Exec& e) { embedding(e, kIds, view(data, format, 7, cols), 1.7f, y.mat()); });
        std::vector<double> expected(kIds.size() * cols);
        ref::embedding<double>(static_cast<int64_t>(kIds.size()), kIds.data(), cols, decoded.data(), 1.7f,
                               expected.data());
        for (int64_t i = 0; i < static_cast<int64_t>(expected.size()); ++i)
          ASSERT_TRUE(
              testing::close(y.get(i / cols, i % cols), expected[i], testing::kU * std::abs(expected[i]), t));
        testing::expect_clean(y);
      }
  }
}

TEST(Embedding, Fp32Rows) { expect_rows<float>(Format::f32); }
TEST(Embedding, Bf16Rows) { expect_rows<bf16>(Format::bf16); }

// What decode_row gives, times the scale, rounded: the same bits in every format.
TEST(Embedding, EveryFormatIsItsDecodedRows) {
  for (const testing::Body& body : testing::bodies())
    for (int f = 0; f <= static_cast<int>(Format::q8_0); ++f)
      for (bool doubly : {false, true}) {
        SCOPED_TRACE(cat(body.name(), " format ", f));
        const testing::WithBody with(body);
        const int64_t cols = is_gguf(static_cast<Format>(f)) ? 96 : 77;
        const TestWeight weight(static_cast<Format>(f), 7, cols,
                                {.block_size = 32, .doubly = doubly, .scale = .7f});
        for (DType t : {DType::f32, DType::bf16}) {
          Tensor y(t, static_cast<int64_t>(kIds.size()), cols);
          testing::run_planned(2, [&](Exec& e) { embedding(e, kIds, weight.view(), 1.7f, y.mat()); });
          std::vector<float> decoded(static_cast<size_t>(cols));
          for (int64_t i = 0; i < static_cast<int64_t>(kIds.size()); ++i) {
            decode_row(weight.view(), kIds[static_cast<size_t>(i)], 0, cols, decoded.data());
            for (int64_t j = 0; j < cols; ++j)
              ASSERT_EQ(y.get(i, j), round_to(t, decoded[static_cast<size_t>(j)] * 1.7f)) << i << ", " << j;
          }
          EXPECT_TRUE(y.gaps_intact());
        }
      }
}

// Rows that a CUDA device's host decodes have the CPU's bits; their room is pinned memory.
TEST(Embedding, OfAHostsTable) {
  const TestWeight weight(Format::nf4, 7, 64, {.block_size = 32});
  for (DType t : {DType::f32, DType::bf16}) {
    const auto n = static_cast<int64_t>(kIds.size());
    Tensor want(t, n, 64);
    testing::run_planned(1, [&](Exec& e) { embedding(e, kIds, weight.view(), 1.7f, want.mat()); });
    cuda::emulate({});
    testing::device_under_test = {DeviceKind::cuda, 0};
    Tensor got(t, n, 64);
    const Trace trace = testing::run_planned(2, [&](Exec& e) {
      const Matrix y = e.matrix(Region::activations, "y", t, n, 64);
      embedding_of_host(e, kIds, weight.view(), 1.7f, y);
      for (int64_t i = 0; i < n && !e.rehearsing(); ++i)
        for (int64_t j = 0; j < 64; ++j)
          got.set(i, j,
                  t == DType::f32 ? y.view().row<float>(i)[j]
                                  : static_cast<double>(static_cast<float>(y.view().row<bf16>(i)[j])));
    });
    testing::device_under_test = {};
    EXPECT_EQ(got.values(), want.values());
    EXPECT_EQ(trace.host_bytes, static_cast<size_t>(n * 64) * size_of(t));
    EXPECT_EQ(trace.bytes, trace.host_bytes);
  }
}

TEST(Embedding, RefusesAnIdOutOfTheTable) {
  const std::vector<float> data = table<float>(14);
  Tensor y(DType::f32, 1, 2);
  Exec e({DeviceKind::cpu, 0}, 1, nullptr);
  for (int32_t id : {-1, 7}) {
    const std::vector<int32_t> ids = {id};
    EXPECT_THROW(embedding(e, ids, view(data, Format::f32, 7, 2), 1, y.mat()), Error);
  }
}

}  // namespace
}  // namespace qlora
