#include "kernels/gemm/gemm_few.h"

#include <gtest/gtest.h>

#include <cmath>

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

bool has_scales(Format f) { return f != Format::f32 && f != Format::f16 && f != Format::bf16; }

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

// As in gemm_test.cc: products and sums round by at most 2^-24 of what the absolute values add up to, y once.
// And by `weights` of it where the definition's weights are rounded to bf16 (2^-8 of themselves) and ours are
// not.
void expect_near(const ConstMat& y, const GemmSums<double>& want, int64_t terms, double weights = 0) {
  const double unit = std::ldexp(1.0, y.dtype == DType::bf16 ? -8 : -24);
  for (int64_t m = 0; m < y.rows; ++m)
    for (int64_t n = 0; n < y.cols; ++n) {
      const size_t at = static_cast<size_t>(m * y.cols + n);
      const double sums =
          ((2.0 * static_cast<double>(terms) + 4) * std::ldexp(1.0, -24) + weights) * want.magnitude[at];
      ASSERT_NEAR(gemm_element<double>(y, m, n), want.sum[at], sums + unit * (std::abs(want.sum[at]) + sums))
          << "[" << m << ", " << n << "]";
    }
}

// What few(x, w) is near. Blocks that keep their factors out are not rounded: as beside an fp32 x. What is
// decoded as GGUF is always rounded in the definition, and whether int8 keeps its factor out hangs on the ISA
// where columns fill no vector.
void expect_product(const TestMatrix& x, const WeightView& w, const ConstMat& y) {
  const bool bf16_scales = x.view().dtype == DType::bf16 && has_scales(w.format);
  const bool four_bits = w.format == Format::nf4 || w.format == Format::fp4;
  const bool whole = w.cols % (four_bits ? w.block_size : 16) == 0;
  const bool either = bf16_scales && (is_gguf(w.format) || (!four_bits && !whole));
  const TestMatrix exact = bf16_scales && whole ? in_fp32(x) : x;
  const GemmTerm term{exact.view(), w};
  expect_near(y, gemm_ref<double>({&term, 1}, {}, y.rows, y.cols, true), w.cols,
              either ? std::ldexp(1.0, -8) : 0);
}

// One, odd, over what goes side by side; columns that no vector, and that no 4-bit block divides.
TEST(GemmFew, EveryFormatAndType) {
  struct Shape {
    int64_t M, N, K;
  };
  const Shape shapes[] = {{1, 1, 32},   {1, 37, 576}, {2, 7, 64},  {3, 50, 96},  {5, 16, 160},
                          {8, 19, 224}, {9, 17, 33},  {16, 5, 39}, {17, 9, 128}, {1, 3, 1}};
  for_each_isa([&] {
    for (const Format format : kFormats)
      for (const Shape& s : shapes) {
        if (is_gguf(format) && s.K % 32 != 0) continue;
        for (const bool doubly : {false, true})
          for (const DType dtype : kDTypes) {
            SCOPED_TRACE(cat("format ", int(format), " ", s.M, "x", s.N, "x", s.K, " ", name_of(dtype)));
            const TestWeight w(
                format, s.N, s.K,
                {.block_size = doubly ? 32 : 64, .doubly = doubly, .scale = doubly ? 0.75f : 1.f});
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

// Every row of a product with the identity is a column of the decoded weight: bit for bit, or beside a bf16
// x within a rounding to bf16 and some to fp32.
TEST(GemmFew, DecodesExactly) {
  constexpr int64_t N = 21, K = 96;
  for_each_isa([&] {
    for (const Format format : kFormats)
      for (const DType dtype : kDTypes) {
        const TestWeight w(format, N, K, {.doubly = true, .scale = 1.7f});
        TestMatrix x(dtype, K, K, 0), y(DType::f32, K, N, 0);
        for (int64_t i = 0; i < K; ++i)
          for (int64_t j = 0; j < K; ++j) x.set(i, j, i == j ? 1.f : 0.f);
        const GemmTerm term{x.view(), w.view()};
        few(1, {&term, 1}, {}, y.view());
        for (int64_t n = 0; n < N; ++n) {
          const std::vector<float> want =
              gemm_weight_row(w.view(), n, has_scales(format) ? DType::f32 : dtype);
          for (int64_t k = 0; k < K; ++k) {
            const float w_nk = want[static_cast<size_t>(k)], got = gemm_element<float>(y.view(), k, n);
            const bool exact = dtype == DType::f32 || !has_scales(format);
            ASSERT_NEAR(got, w_nk, exact ? 0 : std::abs(w_nk) * std::ldexp(1.f, -8)) << int(format);
          }
        }
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
          // The first term's blocks are not rounded, beside either type.
          const TestMatrix exact = in_fp32(x0);
          const GemmTerm first{exact.view(), w0.view()};
          GemmSums<double> want = gemm_ref<double>({&terms[1], 1}, epilogue, M, N, true);
          const GemmSums<double> more = gemm_ref<double>({&first, 1}, {}, M, N, true);
          for (size_t i = 0; i < want.sum.size(); ++i) {
            want.sum[i] += more.sum[i];
            want.magnitude[i] += more.magnitude[i];
          }
          few(2, terms, epilogue, y.view());
          expect_near(y.view(), want, 81);
        }
  });
}

// Neither threads nor the rows of a call change a bit.
TEST(GemmFew, RowsAndThreadsChangeNothing) {
  constexpr int64_t M = 35, N = 131, K = 224;
  for_each_isa([&] {
    for (const Format format : {Format::nf4, Format::q4_1, Format::bf16}) {
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
