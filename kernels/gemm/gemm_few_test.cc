#include "kernels/gemm/gemm_few.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "kernels/gemm/gemm_few_args.h"
#include "kernels/gemm/gemm_ref.h"
#include "kernels/gemm/gemm_test_data.h"
#include "tests/support/body.h"

namespace qlora {
namespace {

using testing::run_planned;

constexpr Format kFormats[] = {Format::f32,  Format::f16,  Format::bf16, Format::nf4, Format::fp4,
                               Format::int8, Format::q4_0, Format::q4_1, Format::q8_0};
constexpr DType kDTypes[] = {DType::f32, DType::bf16};

// On every instruction set of this CPU.
template <class F>
void for_each_isa(const F& f) {
  for (const Isa isa : testing::isas()) {
    SCOPED_TRACE(name_of(isa));
    const testing::WithIsa with(isa);
    f();
  }
}

void few(int threads, std::span<const GemmTerm> terms, const GemmEpilogue& epilogue, const Mat& y) {
  run_planned(threads, [&](Exec& e) { gemm_few_nt(e, "product", terms, epilogue, y); });
}

TestMatrix in_fp32(const TestMatrix& x) {
  const ConstMat from = x.view();
  TestMatrix out(DType::f32, from.rows, from.cols, 0);
  for (int64_t r = 0; r < from.rows; ++r)
    for (int64_t c = 0; c < from.cols; ++c) out.set(r, c, gemm_element<float>(from, r, c));
  return out;
}

// Whether w is multiplied in integers beside a bf16 x.
bool in_integers(const WeightView& w) {
  if (w.format == Format::nf4 || w.format == Format::fp4) return w.cols % 64 == 0 && w.block_size % 64 == 0;
  return is_gguf(w.format) || (w.format == Format::int8 && w.cols % 32 == 0);
}

// w in fp32: as decode_row has it, but of GGUF's blocks not rounded to bf16.
std::vector<float> unrounded(const WeightView& w) {
  std::vector<float> out(static_cast<size_t>(w.elements()));
  const int64_t bytes = w.format == Format::q4_0 ? 18 : w.format == Format::q4_1 ? 20 : 34;
  for (int64_t i = 0; i < w.elements(); ++i) {
    if (!is_gguf(w.format)) {
      if (i % w.cols == 0) decode_row(w, i / w.cols, 0, w.cols, out.data() + i);
      continue;
    }
    const uint8_t* const block = static_cast<const uint8_t*>(w.data) + i / 32 * bytes;
    f16 half[2];
    std::memcpy(half, block, 4);
    const double factor = static_cast<float>(half[0]);
    double value;
    if (w.format == Format::q8_0) {
      value = factor * static_cast<int8_t>(block[2 + i % 32]);
    } else {
      const int code = block[bytes - 16 + i % 16] >> (i % 32 < 16 ? 0 : 4) & 15;
      value = w.format == Format::q4_0 ? factor * (code - 8) : factor * code + static_cast<float>(half[1]);
    }
    out[static_cast<size_t>(i)] = static_cast<float>(value * w.scale);
  }
  return out;
}
WeightView in_fp32(const WeightView& w, const std::vector<float>& values) {
  WeightView out;
  out.rows = w.rows;
  out.cols = w.cols;
  out.data = values.data();
  return out;
}

// What integers may move y by, beside a bf16 x. An x of a block is off by half a unit, which is 2^-14 of the
// power of two below the block's greatest magnitude, or by a unit where it is 32640 of them and that is none
// of its integers: by 1 / 32640 of the greatest at most. A code of nf4 is off by half of 1 / 8191. And a
// block of q4_1 is two sums, which round by their own sizes.
std::vector<double> of_integers(const TestMatrix& x, const WeightView& w, const std::vector<float>& values) {
  const ConstMat rows = x.view();
  const int64_t block = w.format == Format::nf4 || w.format == Format::fp4 ? 64 : 32;
  std::vector<double> slack(static_cast<size_t>(rows.rows * w.rows), 0);
  for (int64_t n = 0; n < w.rows; ++n)
    for (int64_t m = 0; m < rows.rows; ++m)
      for (int64_t b = 0; b < w.cols; b += block) {
        double greatest = 0, of_w = 0, of_x = 0;
        for (int64_t k = b; k < b + block; ++k) {
          const double x_k = std::abs(gemm_element<double>(rows, m, k));
          greatest = std::max(greatest, x_k);
          of_x += x_k;
          of_w += std::abs(static_cast<double>(values[static_cast<size_t>(n * w.cols + k)]));
        }
        double& at = slack[static_cast<size_t>(m * w.rows + n)];
        at += of_w * greatest / 32640;
        if (w.format == Format::nf4)
          at += of_x * std::abs(w.scale * w.block_scale((n * w.cols + b) / w.block_size)) * 0.5 / 8191;
        if (w.format == Format::q4_1) {
          f16 offset;
          std::memcpy(&offset, static_cast<const uint8_t*>(w.data) + (n * w.cols + b) / 32 * 20 + 2, 2);
          at += 2 * of_x * std::abs(w.scale * static_cast<float>(offset)) * static_cast<double>(w.cols) *
                std::ldexp(1.0, -23);
        }
      }
  return slack;
}

// As in gemm_test.cc: products and sums round by at most 2^-24 of what the absolute values add up to, y once.
void expect_near(const ConstMat& y, const GemmSums<double>& want, int64_t terms,
                 const std::vector<double>& slack = {}) {
  const double unit = std::ldexp(1.0, y.dtype == DType::bf16 ? -8 : -24);
  for (int64_t m = 0; m < y.rows; ++m)
    for (int64_t n = 0; n < y.cols; ++n) {
      const size_t at = static_cast<size_t>(m * y.cols + n);
      const double sums = (2.0 * static_cast<double>(terms) + 4) * std::ldexp(1.0, -24) * want.magnitude[at] +
                          (slack.empty() ? 0 : slack[at]);
      ASSERT_NEAR(gemm_element<double>(y, m, n), want.sum[at], sums + unit * (std::abs(want.sum[at]) + sums))
          << "[" << m << ", " << n << "]";
    }
}

// What few(x, w) is near: where it multiplies integers, weights that nothing has rounded; else gemm_nt's.
// `slack` false: integers move nothing either.
void expect_product(const TestMatrix& x, const WeightView& w, const ConstMat& y, bool slack = true) {
  if (x.view().dtype != DType::bf16 || !in_integers(w)) {
    const GemmTerm term{x.view(), w};
    return expect_near(y, gemm_ref<double>({&term, 1}, {}, y.rows, y.cols, true), w.cols);
  }
  const std::vector<float> values = unrounded(w);
  const TestMatrix exact = in_fp32(x);
  const GemmTerm term{exact.view(), in_fp32(w, values)};
  expect_near(y, gemm_ref<double>({&term, 1}, {}, y.rows, y.cols, true), w.cols,
              slack ? of_integers(x, w, values) : std::vector<double>());
}

// One, odd, over what goes side by side; columns that no vector, and that no 4-bit block divides; rows of
// many blocks.
TEST(GemmFew, EveryFormatAndType) {
  struct Shape {
    int64_t M, N, K;
  };
  const Shape shapes[] = {{1, 1, 32},   {1, 37, 576}, {2, 7, 64},  {3, 50, 96},  {5, 16, 160},
                          {8, 19, 224}, {9, 17, 33},  {16, 5, 39}, {17, 9, 128}, {1, 3, 1},
                          {4, 66, 192}, {1, 131, 64}, {2, 3, 8320}};
  for_each_isa([&] {
    for (const Format format : kFormats)
      for (const Shape& s : shapes) {
        if (is_gguf(format) && s.K % 32 != 0) continue;
        for (const bool doubly : {false, true})
          for (const DType dtype : kDTypes) {
            SCOPED_TRACE(cat("format ", int(format), " ", s.M, "x", s.N, "x", s.K, " ", name_of(dtype)));
            const TestWeight w(format, s.N, s.K,
                               {.block_size = s.N % 3 == 0   ? 128
                                              : s.N % 2 == 0 ? 32
                                                             : 64,
                                .doubly = doubly,
                                .scale = doubly ? 0.75f : 1.f});
            const TestMatrix x(dtype, s.M, s.K, 3);
            TestMatrix y(DType::f32, s.M, s.N, 4), rounded(DType::bf16, s.M, s.N, 4);
            const GemmTerm term{x.view(), w.view()};
            few(2, {&term, 1}, {}, y.view());
            few(2, {&term, 1}, {}, rounded.view());
            expect_product(x, w.view(), y.view());
            expect_product(x, w.view(), rounded.view());
            EXPECT_TRUE(y.padding_untouched() && rounded.padding_untouched());
            if (::testing::Test::HasFatalFailure()) return;
          }
      }
  });
}

// Every row of a product with the identity is a column of the decoded weight: bit for bit where gemm_nt's
// weights are multiplied; integers give the unrounded one, of nf4 within half of 1 / 8191 of its scale, and
// round where the codes are multiplied by factors and added to offsets.
TEST(GemmFew, DecodesExactly) {
  constexpr int64_t N = 21;
  for_each_isa([&] {
    for (const int64_t K : {96, 128})
      for (const Format format : kFormats)
        for (const DType dtype : kDTypes) {
          const TestWeight w(format, N, K, {.doubly = true, .scale = 1.7f});
          TestMatrix x(dtype, K, K, 0), y(DType::f32, K, N, 0);
          for (int64_t i = 0; i < K; ++i)
            for (int64_t j = 0; j < K; ++j) x.set(i, j, i == j ? 1.f : 0.f);
          const GemmTerm term{x.view(), w.view()};
          few(1, {&term, 1}, {}, y.view());
          const bool integers = dtype == DType::bf16 && in_integers(w.view());
          const std::vector<float> values = unrounded(w.view());
          for (int64_t n = 0; n < N; ++n) {
            const std::vector<float> want = gemm_weight_row(w.view(), n, dtype);
            for (int64_t k = 0; k < K; ++k) {
              const float w_nk =
                  integers ? values[static_cast<size_t>(n * K + k)] : want[static_cast<size_t>(k)];
              // 2: offset and code times factor of q4_1 are within that of 1.7 in size.
              float error = integers ? std::ldexp(format == Format::q4_1 ? 8.f : std::abs(w_nk), -22) : 0;
              if (integers && format == Format::nf4)
                error += 1.7f * std::abs(w.view().block_scale((n * K + k) / 64)) * 0.5f / 8191;
              ASSERT_NEAR(gemm_element<float>(y.view(), k, n), w_nk, error) << int(format) << " " << K;
            }
          }
        }
  });
}

// What is at least 2^-7 of its block's greatest is not rounded: nothing is off but fp32's sums.
TEST(GemmFew, ElementsOfOneSizeAreExact) {
  constexpr int64_t M = 5, N = 9, K = 384;
  for_each_isa([&] {
    for (const Format format : {Format::int8, Format::q4_0, Format::q4_1, Format::q8_0, Format::fp4}) {
      const TestWeight w(format, N, K, {});
      TestMatrix x(DType::bf16, M, K, 0), y(DType::f32, M, N, 0);
      for (int64_t m = 0; m < M; ++m)
        for (int64_t k = 0; k < K; ++k) {
          const int64_t i = m * 311 + k * 97;  // an 8-bit significand below 255, at one of 8 sizes
          const float size = std::ldexp(static_cast<float>(128 + i % 127), -static_cast<int>(i % 8));
          x.set(m, k, (i % 3 == 0 ? -size : size) * std::ldexp(1.f, static_cast<int>(k / 64) * 9));
        }
      const GemmTerm term{x.view(), w.view()};
      few(1, {&term, 1}, {}, y.view());
      expect_product(x, w.view(), y.view(), format == Format::q4_1);
    }
  });
}

// A block of an x that is no number spoils its row, and no other; one that is next to nothing counts as 0.
TEST(GemmFew, BlocksOfNoNumbersAndOfNothing) {
  constexpr int64_t M = 3, N = 18, K = 192;
  for_each_isa([&] {
    for (const Format format : {Format::nf4, Format::int8, Format::q4_0, Format::q4_1, Format::q8_0}) {
      const TestWeight w(format, N, K, {});
      for (const float odd : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                              -std::numeric_limits<float>::infinity()}) {
        TestMatrix x(DType::bf16, M, K, 0), y(DType::f32, M, N, 0);
        x.set(1, 70, odd);
        for (int64_t k = 0; k < K; ++k) x.set(2, k, std::ldexp(1.f, k < 128 ? -114 : -130));
        const GemmTerm term{x.view(), w.view()};
        few(1, {&term, 1}, {}, y.view());
        for (int64_t n = 0; n < N; ++n) {
          EXPECT_TRUE(std::isfinite(gemm_element<float>(y.view(), 0, n)));
          EXPECT_TRUE(std::isnan(gemm_element<float>(y.view(), 1, n))) << int(format);
          EXPECT_EQ(gemm_element<float>(y.view(), 2, n), 0) << int(format);
        }
      }
    }
  });
}

// An instruction that the CPU may lack changes no bit.
TEST(GemmFew, ProductsOfIntegersAreTheSameWithoutVnni) {
  constexpr int64_t M = 5, N = 33, K = 576;
  for_each_isa([&] {
    for (const Format format : kFormats) {
      const TestWeight w(format, N, K, {});
      const TestMatrix x(DType::bf16, M, K, 0);
      TestMatrix with(DType::f32, M, N, 0), without(DType::f32, M, N, 0);
      const GemmTerm term{x.view(), w.view()};
      few(1, {&term, 1}, {}, with.view());
      few_vnni() = false;
      few(1, {&term, 1}, {}, without.view());
      few_vnni() = true;
      EXPECT_TRUE(same_bits(with, without)) << int(format);
    }
  });
}

TEST(GemmFew, TermsBiasAndResidual) {
  constexpr int64_t N = 75;
  for_each_isa([&] {
    for (const int64_t M : {1, 3, 13})
      for (const DType dtype : kDTypes)
        for (const DType residual_dtype : kDTypes) {
          const TestWeight w0(Format::nf4, N, 64, {}), w1(Format::f32, N, 17, {.scale = 2.f});
          const TestMatrix x0(dtype, M, 64, 5), x1(dtype, M, 17, 0), bias(DType::f32, 1, N, 0);
          TestMatrix y(residual_dtype, M, N, 6);
          const GemmTerm terms[] = {{x0.view(), w0.view()}, {x1.view(), w1.view()}};
          const GemmEpilogue epilogue{bias.view().row<float>(0), y.view()};  // the residual is y itself
          // The first term's weights are not rounded, beside either type.
          const TestMatrix exact = in_fp32(x0);
          const GemmTerm first{exact.view(), w0.view()};
          const std::vector<float> values = unrounded(w0.view());
          GemmSums<double> want = gemm_ref<double>({&terms[1], 1}, epilogue, M, N, true);
          const GemmSums<double> more = gemm_ref<double>({&first, 1}, {}, M, N, true);
          for (size_t i = 0; i < want.sum.size(); ++i) {
            want.sum[i] += more.sum[i];
            want.magnitude[i] += more.magnitude[i];
          }
          few(2, terms, epilogue, y.view());
          expect_near(y.view(), want, 81,
                      dtype == DType::bf16 ? of_integers(x0, w0.view(), values) : std::vector<double>());
        }
  });
}

// Neither threads nor the rows of a call change a bit.
TEST(GemmFew, RowsAndThreadsChangeNothing) {
  constexpr int64_t M = 35, N = 131, K = 576;
  for_each_isa([&] {
    for (const Format format : {Format::nf4, Format::q4_0, Format::q4_1, Format::q8_0, Format::bf16}) {
      const TestWeight w(format, N, K, {}), b(Format::f32, N, 16, {});
      const TestMatrix x(DType::bf16, M, K, 0), s(DType::bf16, M, 16, 0);
      TestMatrix y(DType::bf16, M, N, 0);
      const auto run = [&](int threads, int64_t begin, int64_t count, const Mat& to) {
        const GemmTerm terms[] = {{x.view().row_range(begin, count), w.view()},
                                  {s.view().row_range(begin, count), b.view()}};
        few(threads, terms, {}, to.row_range(begin, count));
      };
      run(1, 0, M, y.view());
      for (const int64_t rows : {int64_t{1}, int64_t{2}, kFewRows, int64_t{5}, M}) {
        TestMatrix z(DType::bf16, M, N, 0);
        for (int64_t at = 0; at < M; at += rows) run(3, at, std::min(rows, M - at), z.view());
        EXPECT_TRUE(same_bits(y, z)) << "in calls of " << rows;
      }
    }
  });
}

TEST(GemmFew, EmptyOperands) {
  const TestWeight w(Format::f32, 20, 3, {});
  WeightView none = w.view();
  none.cols = 0;
  const TestMatrix x(DType::f32, 4, 0, 3), bias(DType::f32, 1, 20, 0), no_rows(DType::f32, 0, 3, 0);
  TestMatrix y(DType::f32, 4, 20, 0);
  const GemmTerm term{x.view(), none}, rowless{no_rows.view(), w.view()};
  few(1, {&term, 1}, {bias.view().row<float>(0), {}}, y.view());
  for (int64_t n = 0; n < 20; ++n) EXPECT_EQ(y.view().row<float>(3)[n], bias.view().row<float>(0)[n]);
  few(2, {&rowless, 1}, {}, y.view().row_range(0, 0));
}

TEST(GemmFew, RefusesWhatDoesNotFit) {
  const TestWeight w(Format::f32, 20, 3, {});
  const TestMatrix x(DType::f32, 4, 5, 0);
  TestMatrix y(DType::f32, 4, 20, 0);
  const GemmTerm term{x.view(), w.view()};
  EXPECT_THROW(few(1, {&term, 1}, {}, y.view()), Error);
}

}  // namespace
}  // namespace qlora
