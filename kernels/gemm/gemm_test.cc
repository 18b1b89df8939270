#include "kernels/gemm/gemm.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "kernels/common/isa.h"
#include "kernels/gemm/gemm_choice.h"
#include "kernels/gemm/gemm_ref.h"
#include "kernels/gemm/gemm_test_data.h"
#include "kernels/gemm/gemm_test_near.h"
#include "tests/support/body.h"

namespace qlora {
namespace {

using testing::rehearse;
using testing::run_planned;

constexpr Format kFormats[] = {Format::f32,  Format::f16,  Format::bf16, Format::nf4, Format::fp4,
                               Format::int8, Format::q4_0, Format::q4_1, Format::q8_0};

// On each instruction set, and on CUDA by each of its bodies in one of the emulator's variants (GemmCuda
// compares them all), where a product takes some hundred times as long: fewer and shorter ones.
class Gemm : public ::testing::TestWithParam<std::string> {
 protected:
  Gemm() {
    const std::string& name = GetParam();
    const bool cuda = name.starts_with("cuda_");
    if (cuda) set_cuda_gemm(cuda_gemm_of(name.substr(5)));
    for (const testing::Body& b : testing::bodies())
      if (b.name() == (cuda ? "cuda 3" : name)) with_.emplace(b);
  }
  ~Gemm() override { set_cuda_gemm(CudaGemm::by_rows); }
  void SetUp() override {
    if (!with_) GTEST_SKIP() << "this CPU has no " << GetParam();
  }
  static bool on_cuda() { return testing::device_under_test.kind == DeviceKind::cuda; }
  // cuBLASLt picks its algorithm by the shape, rows included.
  static bool rows_count() { return on_cuda() && cuda_gemm() != CudaGemm::own; }
  std::optional<testing::WithBody> with_;
};
class GemmOnCpu : public Gemm {};

std::vector<std::string> gemm_bodies(bool with_cuda) {
  std::vector<std::string> out;
  for (Isa isa : kIsas) out.push_back(std::string(name_of(isa)));
  if (with_cuda) out.insert(out.end(), {"cuda_own", "cuda_dequant", "cuda_fused"});
  return out;
}
std::string gemm_test_name(const ::testing::TestParamInfo<std::string>& info) { return info.param; }
INSTANTIATE_TEST_SUITE_P(Isas, Gemm, ::testing::ValuesIn(gemm_bodies(true)), gemm_test_name);
INSTANTIATE_TEST_SUITE_P(Isas, GemmOnCpu, ::testing::ValuesIn(gemm_bodies(false)), gemm_test_name);

struct Shape {
  int64_t M, out, in;  // of W [out, in]
};

TEST_P(Gemm, EveryFormatTypeAndDirection) {
  // One, odd, ragged, over a tile, over a block of K; columns that no 4-bit block divides.
  const Shape shapes[] = {{1, 1, 32},   {3, 7, 64},    {1, 50, 96}, {9, 49, 160}, {17, 97, 224},
                          {8, 48, 192}, {5, 130, 416}, {2, 16, 33}, {7, 33, 39}};
  int cases = 0;
  for (const Format format : kFormats)
    for (const Shape& s : shapes) {
      if (is_gguf(format) && s.in % 32 != 0) continue;
      if (on_cuda() && ++cases % 4 != 0) continue;
      for (const int variant : {0, 1, 2}) {
        const TestWeight w(format, s.out, s.in,
                           {.block_size = variant == 1 ? 32 : 64,
                            .doubly = variant != 0,
                            .scale = variant == 2 ? 0.75f : 1.f});
        for (const DType dtype : kDTypes)
          for (const bool nt : {true, false}) {
            const TestMatrix x(dtype, s.M, nt ? s.in : s.out, 3);
            TestMatrix y(dtype, s.M, nt ? s.out : s.in, 4);
            const GemmTerm term{x.view(), w.view()};
            run_planned(1, [&](Exec& e) { multiply(e, nt, {&term, 1}, {}, y.view()); });
            expect_near(y.view(), gemm_ref<double>({&term, 1}, {}, s.M, y.view().cols, nt), x.view().cols,
                        cat("format ", int(format), " variant ", variant, " nt ", nt, " ", s.M, "x", s.out,
                            "x", s.in, " ", name_of(dtype)));
            EXPECT_TRUE(y.padding_untouched());
            if (HasFatalFailure()) return;
          }
      }
    }
}

// A product with the identity is the decoded weight, bit for bit.
TEST_P(Gemm, DecodesExactly) {
  for (const Format format : kFormats)
    for (const auto& [out, in] : {std::pair<int64_t, int64_t>{53, 96}, {20, 224}, {35, 50}, {50, 256}}) {
      if ((is_gguf(format) && in % 32 != 0) || (on_cuda() && in == 256)) continue;
      for (const float scale : {1.f, 1.7f})
        for (const DType dtype : kDTypes)
          for (const bool nt : {true, false}) {
            const TestWeight w(format, out, in, {.doubly = scale != 1.f, .scale = scale});
            const int64_t K = nt ? in : out;
            TestMatrix x(dtype, K, K, 0);
            for (int64_t i = 0; i < K; ++i)
              for (int64_t j = 0; j < K; ++j) x.set(i, j, i == j ? 1.f : 0.f);
            TestMatrix y(DType::f32, K, nt ? out : in, 0);
            const GemmTerm term{x.view(), w.view()};
            run_planned(1, [&](Exec& e) { multiply(e, nt, {&term, 1}, {}, y.view()); });
            for (int64_t r = 0; r < out; ++r) {
              const std::vector<float> want = gemm_weight_row(w.view(), r, dtype);
              for (int64_t c = 0; c < in; ++c)
                ASSERT_EQ(gemm_element<float>(y.view(), nt ? c : r, nt ? r : c), want[c])
                    << "format " << int(format) << " nt " << nt << " [" << r << ", " << c << "]";
            }
          }
    }
}

TEST_P(Gemm, TermsBiasAndResidual) {
  const int64_t M = 13, N = 75;
  for (const DType dtype : kDTypes)
    for (const DType residual_dtype : kDTypes)
      for (const bool nt : {true, false}) {
        const TestWeight w0(Format::nf4, nt ? N : 64, nt ? 64 : N, {});
        const TestWeight w1(Format::f32, nt ? N : 17, nt ? 17 : N, {.scale = 2.f});
        const TestWeight w2(Format::bf16, nt ? N : 200, nt ? 200 : N, {});
        const TestMatrix x0(dtype, M, 64, 5), x1(dtype, M, 17, 0), x2(dtype, M, 200, 1);
        const GemmTerm terms[] = {{x0.view(), w0.view()}, {x1.view(), w1.view()}, {x2.view(), w2.view()}};
        const TestMatrix bias(DType::f32, 1, N, 0), residual(residual_dtype, M, N, 6);
        GemmEpilogue epilogue{nullptr, residual.view()};
        if (nt) epilogue.bias = bias.view().row<float>(0);
        for (const DType y_dtype : kDTypes) {
          TestMatrix y(y_dtype, M, N, 2);
          run_planned(2, [&](Exec& e) { multiply(e, nt, terms, epilogue, y.view()); });
          expect_near(y.view(), gemm_ref<double>(terms, epilogue, M, N, nt), 281, "terms");
        }
        // The residual may be y itself.
        TestMatrix y(residual);
        GemmEpilogue onto = epilogue;
        const GemmSums<double> want = gemm_ref<double>(terms, epilogue, M, N, nt);
        onto.residual = y.view();
        // (run_planned's rehearsal computes nothing, so y is added once)
        run_planned(2, [&](Exec& e) { multiply(e, nt, terms, onto, y.view()); });
        expect_near(y.view(), want, 281, "onto y");
      }
}

// The rows of a call and the threads change no bit.
TEST_P(Gemm, RowsAndThreadsChangeNothing) {
  const int64_t M = on_cuda() ? 231 : 531, N = 100, K = on_cuda() ? 64 : 256;
  for (const DType dtype : kDTypes)
    for (const bool nt : {true, false}) {
      if (rows_count() && dtype == DType::bf16) continue;
      const TestWeight w(Format::nf4, nt ? N : K, nt ? K : N, {}),
          b(Format::f32, nt ? N : 16, nt ? 16 : N, {});
      const TestMatrix x(dtype, M, K, 0), s(dtype, M, 16, 0);
      TestMatrix y(dtype, M, N, 0);
      const auto run = [&](int threads, int64_t begin, int64_t count, const Mat& to) {
        const GemmTerm terms[] = {{x.view().row_range(begin, count), w.view()},
                                  {s.view().row_range(begin, count), b.view()}};
        run_planned(threads, [&](Exec& e) { multiply(e, nt, terms, {}, to.row_range(begin, count)); });
      };
      run(1, 0, M, y.view());
      for (const int threads : {2, 3}) {
        TestMatrix z(dtype, M, N, 0);
        run(threads, 0, M, z.view());
        EXPECT_TRUE(same_bits(y, z)) << threads << " threads";
      }
      for (const int64_t rows : {1, 7, 64, 300}) {
        TestMatrix z(dtype, M, N, 0);
        for (int64_t at = 0; at < M; at += rows == 1 ? 59 : rows == 7 ? 77 : rows) {
          const int64_t count = std::min(rows, M - at);
          run(1, at, count, z.view());
          for (int64_t r = at; r < at + count; ++r)
            EXPECT_TRUE(same_row(y, z, r)) << "row " << r << " in calls of " << rows;
        }
      }
    }
}

// An output cut both ways, into numbers of row blocks and column groups that share a factor on every ISA.
TEST_P(Gemm, CutsBothWays) {
  const int64_t M = on_cuda() ? 130 : 1100, N = on_cuda() ? 200 : 1152, K = 33;
  const TestWeight w(Format::f32, N, K, {});
  const TestMatrix x(DType::f32, M, K, 0);
  const auto run = [&](int threads, int64_t begin, int64_t count, const Mat& to) {
    const GemmTerm term{x.view().row_range(begin, count), w.view()};
    run_planned(threads, [&](Exec& e) { gemm_nt(e, "product", {&term, 1}, {}, to.row_range(begin, count)); });
  };
  TestMatrix rows(DType::f32, M, N, 0);
  for (const int threads : {1, 2}) {
    TestMatrix y(DType::f32, M, N, 0);
    run(threads, 0, M, y.view());
    for (const int64_t begin : {int64_t{0}, M / 2, M - 37}) {
      run(1, begin, 37, rows.view());
      for (int64_t r = begin; r < begin + 37; ++r) ASSERT_TRUE(same_row(y, rows, r)) << "row " << r;
    }
  }
}

// Sums of more terms than any block or panel holds; rows of x that lie a power of two apart, and not.
TEST_P(Gemm, SumsOfManyTerms) {
  for (auto [M, N, K] : {std::array<int64_t, 3>{33, 40, 2048}, {35, 140, 1129}}) {
    if (on_cuda()) K /= 4;
    for (const Format format : {Format::nf4, Format::bf16})
      for (const bool nt : {true, false})
        for (const DType dtype : kDTypes) {
          const TestWeight w0(format, nt ? N : K, nt ? K : N, {}),
              w1(Format::f32, nt ? N : 48, nt ? 48 : N, {});
          const TestMatrix x0(dtype, M, K, 0), x1(dtype, M, 48, 16), x2(dtype, M, K, 31);
          const GemmTerm terms[] = {{x0.view(), w0.view()}, {x1.view(), w1.view()}, {x2.view(), w0.view()}};
          TestMatrix y(DType::f32, M, N, 1);
          run_planned(2, [&](Exec& e) { multiply(e, nt, terms, {}, y.view()); });
          expect_near(y.view(), gemm_ref<double>(terms, {}, M, N, nt), 2 * K + 48, cat("long sums ", M));
        }
  }
}

// Logits are so large that they are written past the caches: the same bits as in calls of one row.
TEST_P(Gemm, LargeOutputs) {
  const int64_t M = 33, N = 16400;
  const TestWeight w(Format::bf16, N, 32, {});
  const TestMatrix x(DType::bf16, M, 32, 0);
  for (const DType dtype : kDTypes) {
    TestMatrix y(dtype, M, N, 16), rows(dtype, M, N, 16);
    const auto run = [&](int64_t r, int64_t n, const Mat& to) {
      const GemmTerm term{x.view().row_range(r, n), w.view()};
      run_planned(2, [&](Exec& e) { gemm_nt(e, "product", {&term, 1}, {}, to.row_range(r, n)); });
    };
    run(0, M, y.view());
    if (rows_count()) {
      const GemmTerm term{x.view(), w.view()};
      expect_near(y.view(), gemm_ref<double>({&term, 1}, {}, M, N, true), 32, "logits");
      continue;
    }
    for (const int64_t r : {0, 15, 31, 32}) run(r, 1, rows.view());
    for (const int64_t r : {0, 15, 31, 32}) EXPECT_TRUE(same_row(y, rows, r)) << "row " << r;
  }
}

TEST_P(Gemm, TransposedAccumulates) {
  const Shape shapes[] = {{1, 1, 1},    {5, 16, 70},   {200, 16, 100}, {399, 70, 16},
                          {193, 5, 49}, {64, 90, 131}, {1200, 9, 40}};
  for (const Shape& s : shapes)
    for (const DType a_dtype : kDTypes)
      for (const DType b_dtype : kDTypes) {
        const TestMatrix a(a_dtype, s.M, s.out, 3), b(b_dtype, s.M, s.in, 1);
        TestMatrix out(DType::f32, s.out, s.in, 2);
        GemmSums<double> want = gemm_tn_ref<double>(a.view(), b.view(), 0.375f);
        for (int64_t p = 0; p < s.out; ++p)
          for (int64_t q = 0; q < s.in; ++q) {
            const double former = gemm_element<double>(out.view(), p, q);
            want.sum[p * s.in + q] += former;
            want.magnitude[p * s.in + q] += std::abs(former);
          }
        const TestMatrix former(out);
        run_planned(1, [&](Exec& e) { gemm_tn(e, "product", a.view(), b.view(), 0.375f, out.view()); });
        expect_near(out.view(), want, s.M, cat("tn ", s.M, " ", s.out, " ", s.in));
        EXPECT_TRUE(out.padding_untouched());
        for (const int threads : {2, 3}) {
          TestMatrix again(former);
          run_planned(threads,
                      [&](Exec& e) { gemm_tn(e, "product", a.view(), b.view(), 0.375f, again.view()); });
          EXPECT_TRUE(same_bits(out, again)) << threads << " threads";
        }
      }
}

TEST_P(Gemm, EmptyOperands) {
  const TestWeight w(Format::f32, 20, 3, {});
  const TestMatrix x(DType::f32, 4, 0, 3);
  TestMatrix y(DType::f32, 4, 20, 0);
  WeightView none = w.view();
  none.cols = 0;
  const GemmTerm term{x.view(), none};
  const TestMatrix bias(DType::f32, 1, 20, 0);
  run_planned(1, [&](Exec& e) {
    gemm_nt(e, "product", {&term, 1}, {bias.view().row<float>(0), {}}, y.view());
  });
  for (int64_t n = 0; n < 20; ++n) EXPECT_EQ(y.view().row<float>(3)[n], bias.view().row<float>(0)[n]);
}

// On the rehearsal device every operand may lie where any touch faults.
TEST_P(GemmOnCpu, RehearsalTouchesNothing) {
  const int64_t M = 100, N = 192, K = 576;
  const Trace trace = rehearse(2, [&](Exec& e) {
    const Matrix x = e.matrix(Region::activations, "x", DType::bf16, M, K);
    const Matrix s = e.matrix(Region::activations, "s", DType::bf16, M, 16);
    const Matrix y = e.matrix(Region::activations, "y", DType::bf16, M, N);
    const Matrix b = e.matrix(Region::adapter, "b", DType::f32, N, 16);
    const Buffer codes = e.allocate(Region::base, "codes", N * K / 2);
    WeightView w{Format::nf4, N, K, codes.data()};
    w.absmax = codes.as<float>();
    WeightView sb{Format::f32, N, 16, b.view().data};
    const GemmTerm terms[] = {{x, w}, {s, sb}};
    gemm_nt(e, "forward", terms, {}, y);
    const GemmTerm back{y, w};
    gemm_nn(e, "backward", {&back, 1}, {}, x);
    gemm_tn(e, "gradient", y, s, 1, b);
  });
  ASSERT_EQ(trace.ops.size(), 3u);
  EXPECT_EQ(trace.ops[0].flops, 2.0 * M * N * (K + 16));
  EXPECT_EQ(trace.ops[0].bytes_read, M * (K + 16) * 2.0 + N * K / 2 + N * K / 64 * 4 + N * 16 * 4);
  EXPECT_EQ(trace.ops[0].bytes_written, M * N * 2.0);
  EXPECT_EQ(trace.ops[1].flops, 2.0 * M * N * K);
  EXPECT_EQ(trace.ops[2].flops, 2.0 * M * N * 16);
}

// What was planned for the largest batch serves every smaller one.
TEST_P(GemmOnCpu, WorkspaceGrowsWithRows) {
  const int64_t N = 192, K = 64;
  const TestWeight w(Format::f32, N, K, {});
  size_t former = 0;
  for (const int64_t M : {0, 1, 2, 7, 8, 9, 63, 64, 500, 504, 511, 512, 513, 600, 1000, 1025, 4096}) {
    const TestMatrix x(DType::f32, M, K, 0);
    TestMatrix y(DType::f32, M, N, 0);
    const GemmTerm term{x.view(), w.view()};
    const Trace trace = rehearse(2, [&](Exec& e) { gemm_nt(e, "product", {&term, 1}, {}, y.view()); });
    ASSERT_EQ(trace.spans.size(), 1u);
    EXPECT_GE(trace.spans[0].bytes, former) << M;
    former = trace.spans[0].bytes;
  }
}

TEST_P(GemmOnCpu, RefusesWhatDoesNotFit) {
  const TestWeight w(Format::f32, 20, 30, {});
  const TestMatrix x(DType::f32, 4, 30, 0), short_x(DType::f32, 4, 29, 0), mixed(DType::bf16, 4, 30, 0);
  TestMatrix y(DType::f32, 4, 20, 0), wide(DType::f32, 4, 21, 0);
  const auto refused = [](auto&& f) {
    try {
      rehearse(1, f);
    } catch (const Error& e) {
      return e.category() == Category::internal;
    }
    return false;
  };
  const GemmTerm good{x.view(), w.view()}, bad{short_x.view(), w.view()};
  const GemmTerm two[] = {good, {mixed.view(), w.view()}};
  EXPECT_FALSE(refused([&](Exec& e) { gemm_nt(e, "g", {&good, 1}, {}, y.view()); }));
  EXPECT_TRUE(refused([&](Exec& e) { gemm_nt(e, "g", {&bad, 1}, {}, y.view()); }));
  EXPECT_TRUE(refused([&](Exec& e) { gemm_nn(e, "g", {&good, 1}, {}, y.view()); }));
  EXPECT_TRUE(refused([&](Exec& e) { gemm_nt(e, "g", {&good, 1}, {}, wide.view()); }));
  EXPECT_TRUE(refused([&](Exec& e) { gemm_nt(e, "g", {&good, 1}, {nullptr, wide.view()}, y.view()); }));
  EXPECT_TRUE(refused([&](Exec& e) { gemm_nt(e, "g", two, {}, y.view()); }));
  EXPECT_TRUE(refused([&](Exec& e) { gemm_nt(e, "g", {}, {}, y.view()); }));
  EXPECT_TRUE(refused([&](Exec& e) { gemm_tn(e, "g", x.view(), y.view(), 1, wide.view()); }));
}

}  // namespace
}  // namespace qlora
