#include <gtest/gtest.h>

#include <array>
#include <deque>
#include <string>
#include <vector>

#include "kernels/cuda/cublaslt.h"
#include "kernels/gemm/gemm.h"
#include "kernels/gemm/gemm_choice.h"
#include "kernels/gemm/gemm_few.h"
#include "kernels/gemm/gemm_plan.h"
#include "kernels/gemm/gemm_ref.h"
#include "kernels/gemm/gemm_test_data.h"
#include "kernels/gemm/gemm_test_near.h"
#include "tests/support/body.h"
#include "tests/support/gemm_on_cuda.h"

namespace qlora {
namespace {

using testing::run_planned;

bool is_logged(const std::string& product) {
  return cuda::matmul_log().find("| " + product + " |") != std::string::npos;
}

// Variants give the same bits: in each direction, in more tiles than one, ragged.
TEST_F(GemmCuda, SameBitsInEveryVariant) {
  set_cuda_gemm(CudaGemm::own);
  for (const testing::Body& body : testing::bodies()) {
    if (body.device.kind != DeviceKind::cuda) continue;
    SCOPED_TRACE(body.name());
    const testing::WithBody with(body);
    for (const DType dtype : kDTypes)
      for (const int64_t gap : {0, 3}) {  // rows on 16 bytes, and off them
        const TestWeight w(Format::nf4, 168, 88, {});
        const TestMatrix x(dtype, 140, 88, gap * 8 / 3), dy(dtype, 140, 168, gap);
        TestMatrix y(dtype, 140, 168, gap), dx(DType::f32, 140, 88, gap), out(DType::f32, 88, 168, gap);
        const GemmTerm forward{x.view(), w.view()}, backward{dy.view(), w.view()};
        run_planned(1, [&](Exec& e) {
          gemm_nt(e, "nt", {&forward, 1}, {}, y.view());
          gemm_nn(e, "nn", {&backward, 1}, {}, dx.view());
          gemm_tn(e, "tn", x.view(), dy.view(), .5f, out.view());
        });
        for (const TestMatrix* m : {&y, &dx, &out}) testing::WithBody::expect_repeats(m->bytes());
      }
  }
}

// Workspace: cuBLASLt's where it is called; weights decoded to bf16, one at a time where the sum is fp32; the
// terms' x where they are one sum.
TEST_F(GemmCuda, AsksForItsWorkspace) {
  constexpr int64_t M = 256, N = 64, K = 96, R = 8;
  const TestWeight w(Format::nf4, N, K, {}), lora(Format::f32, N, R, {}), plain(Format::bf16, N, K, {});
  const TestMatrix x(DType::bf16, M, K, 8), s(DType::bf16, M, R, 16), odd(DType::bf16, M, K, 1);
  const TestMatrix bias(DType::f32, 1, N, 0);
  const auto asked = [&](std::span<const GemmTerm> terms, DType type, const GemmEpilogue& epilogue = {}) {
    TestMatrix y(type, M, N, 8);
    Trace trace("t");
    Exec e = Exec::rehearsal(2, {DeviceKind::cuda, 0});
    Phase phase(e, trace);
    gemm_nt(e, "product", terms, epilogue, y.view());
    EXPECT_EQ(trace.ops.size(), 1u);
    EXPECT_EQ(trace.spans.size(), 1u);
    return trace.peak_live_bytes();
  };
  constexpr size_t kDecoded = N * K * sizeof(bf16), kLora = N * R * sizeof(bf16),
                   kAlign = cuda::kCublasLtAlign, kLibrary = cuda::kCublasLtWorkspace + kAlign;
  const GemmTerm both[] = {{x.view(), w.view()}, {s.view(), lora.view()}};
  const GemmTerm stored{x.view(), plain.view()}, off{odd.view(), w.view()};
  set_cuda_gemm(CudaGemm::dequant);
  EXPECT_EQ(asked(both, DType::f32), kLibrary + kDecoded);
  EXPECT_EQ(asked(both, DType::bf16), kLibrary + kDecoded + kLora + M * (K + R) * sizeof(bf16));
  EXPECT_EQ(asked(both, DType::bf16, {bias.view().row<float>(0), {}}),
            kLibrary + kDecoded + kLora + M * N * sizeof(float));
  EXPECT_EQ(asked({&stored, 1}, DType::bf16), kLibrary);
  EXPECT_EQ(asked({&off, 1}, DType::bf16), kDecoded + kAlign);
  set_cuda_gemm(CudaGemm::own);
  EXPECT_EQ(asked(both, DType::f32), kDecoded + kAlign);
  EXPECT_EQ(asked(both, DType::bf16), kDecoded + kLora + kAlign);
  EXPECT_EQ(asked({&stored, 1}, DType::bf16), Trace::kAlign);  // what nothing takes
}

// One shape on cuBLASLt: a base alone and with LoRA's term behind an empty one, every epilogue.
void expect_library_near(Format format, int64_t M, int64_t N, int64_t K, bool nt, DType type) {
  const TestWeight w(format, nt ? N : K, nt ? K : N, {.block_size = 32}),
      lora(Format::f32, nt ? N : 16, nt ? 16 : N, {.scale = 2.f});
  const TestMatrix x(DType::bf16, M, K, 8), s(DType::bf16, M, 16, 40), empty(DType::bf16, M, 0, 8);
  const TestMatrix residual(type, M, N, 16), other(type == DType::f32 ? DType::bf16 : DType::f32, M, N, 8),
      bias(DType::f32, 1, N, 0);
  WeightView nothing = lora.view();
  (nt ? nothing.cols : nothing.rows) = 0;
  const GemmTerm terms[] = {{x.view(), w.view()}, {empty.view(), nothing}, {s.view(), lora.view()}};
  const float* const b = nt ? bias.view().row<float>(0) : nullptr;
  for (const GemmEpilogue& epilogue :
       {GemmEpilogue{}, {b, {}}, {nullptr, residual.view()}, {b, other.view()}})
    for (const size_t count : {1, 3}) {
      TestMatrix y(type, M, N, 24);
      run_planned(1, [&](Exec& e) { multiply(e, nt, {terms, count}, epilogue, y.view()); });
      expect_near(y.view(), gemm_ref<double>({terms, count}, epilogue, M, N, nt), K + 16,
                  cat(M, "x", N, "x", K, " nt ", nt, " ", name_of(type), " terms ", count));
      EXPECT_TRUE(y.padding_untouched());
    }
}

// One row, odd, ragged, over a tile; in both directions and types.
TEST_F(GemmCuda, LibraryMultiplies) {
  on_cuda(CudaGemm::dequant, [] {
    for (const bool nt : {true, false})
      for (const DType type : kDTypes) {
        expect_library_near(Format::nf4, 1, 8, 64, nt, type);
        expect_library_near(Format::bf16, 65, 24, 264, nt, type);
        expect_library_near(nt ? Format::fp4 : Format::int8, 130, 72, 320, nt, type);
      }
    expect_library_near(Format::int8, 2, 264, 1048, true, DType::bf16);  // over a block's columns
  });
  EXPECT_TRUE(is_logged("nt 65x24x264 fp32"));
  EXPECT_TRUE(is_logged("nn 130x72x336 bf16"));    // as one sum
  EXPECT_TRUE(is_logged("nn 130x72x16 fp32 +"));   // one by one
  EXPECT_TRUE(is_logged("nt 130x72x336 bf16 +"));  // onto a residual
}

TEST_F(GemmCuda, LibraryAccumulatesGradients) {
  on_cuda(CudaGemm::dequant, [] {
    const TestMatrix a(DType::bf16, 37, 24, 8), b(DType::bf16, 37, 136, 0);
    TestMatrix out(DType::f32, 24, 136, 8);
    GemmSums<double> want = gemm_tn_ref<double>(a.view(), b.view(), 0.375f);
    for (int64_t p = 0; p < 24; ++p)
      for (int64_t q = 0; q < 136; ++q) {
        const double former = gemm_element<double>(out.view(), p, q);
        want.sum[p * 136 + q] += former;
        want.magnitude[p * 136 + q] += std::abs(former);
      }
    run_planned(1, [&](Exec& e) { gemm_tn(e, "product", a.view(), b.view(), 0.375f, out.view()); });
    expect_near(out.view(), want, 37, "tn");
    EXPECT_TRUE(out.padding_untouched());
  });
  EXPECT_TRUE(is_logged("tn 24x136x37 fp32 +"));
}

// Stored or computed again, at whatever address: one shape, one result.
TEST_F(GemmCuda, ShapesGiveTheBits) {
  on_cuda(CudaGemm::dequant, [] {
    const TestWeight w(Format::nf4, 72, 320, {});
    const TestMatrix x(DType::bf16, 96, 320, 0);
    const auto run = [&](int64_t begin, int64_t count, TestMatrix& y) {
      const GemmTerm term{x.view().row_range(begin, count), w.view()};
      run_planned(1, [&](Exec& e) {
        gemm_nt(e, "product", {&term, 1}, {}, y.view().row_range(begin, count));
      });
    };
    TestMatrix y(DType::f32, 96, 72, 0), again(y);
    for (const int64_t begin : {0, 48}) run(begin, 48, y);
    for (const int64_t begin : {48, 0}) run(begin, 48, again);
    EXPECT_TRUE(same_bits(y, again));
  });
}

// What lies off 16 bytes is multiplied by the tiles, in a workspace that was planned for the library.
TEST_F(GemmCuda, OffSixteenBytes) {
  on_cuda(CudaGemm::dequant, [] {
    const TestWeight w(Format::nf4, 80, 104, {}), lora(Format::f32, 80, 8, {});
    const TestMatrix wide(DType::bf16, 9, 120, 0), s(DType::bf16, 9, 8, 0), bias(DType::f32, 1, 80, 0);
    const GemmTerm terms[] = {{wide.view().col_range(3, 104), w.view()}, {s.view(), lora.view()}};
    const GemmEpilogue epilogue{bias.view().row<float>(0), {}};
    TestMatrix y(DType::bf16, 9, 80, 8);
    run_planned(1, [&](Exec& e) { multiply(e, true, terms, epilogue, y.view()); });
    expect_near(y.view(), gemm_ref<double>(terms, epilogue, 9, 80, true), 112, "off");
  });
  EXPECT_FALSE(is_logged("nt 9x80x104 fp32"));
}

// What no library would take is a bug of ours, told before it is called.
TEST_F(GemmCuda, MatmulChecksItsOperands) {
  alignas(256) static bf16 room[512];
  static float sums[64];
  const cuda::Matmul good{.m = 8,
                          .n = 8,
                          .k = 8,
                          .a = room,
                          .a_stride = 8,
                          .b = room + 64,
                          .b_stride = 8,
                          .c = {},
                          .d = Mat(sums, 8, 8)};
  const auto refused = [&](const auto& change, int64_t at = 0) {
    cuda::Matmul m = good;
    change(m);
    try {
      cuda::check_matmul(m, &room[at]);
    } catch (const Error& e) {
      return e.category() == Category::internal;
    }
    return false;
  };
  EXPECT_FALSE(refused([](cuda::Matmul&) {}));
  EXPECT_TRUE(refused([](cuda::Matmul&) {}, 8));
  EXPECT_TRUE(refused([](cuda::Matmul& m) { m.k = 0; }));
  EXPECT_TRUE(refused([](cuda::Matmul& m) { m.a = room + 1; }));
  EXPECT_TRUE(refused([](cuda::Matmul& m) { m.b_stride = 12; }));
  EXPECT_TRUE(refused([](cuda::Matmul& m) { m.a_stride = 0; }));
  EXPECT_TRUE(refused([](cuda::Matmul& m) { m.m = 9; }));
  EXPECT_TRUE(refused([](cuda::Matmul& m) { m.beta = 1; }));
  EXPECT_TRUE(refused([](cuda::Matmul& m) { m.d.data = room; }));
}

// The fused kernel's cases: codes as they lie and what is decoded one by one, both tiles of rows, more than
// one of them, columns that no tile and k that no block or step divides, sums that are cut.
TEST_F(GemmCuda, FusedMultiplies) {
  struct Case {
    int64_t M, N, K;
    Format format;
    TestWeight::Options options;
    int64_t rank = 40;
  };
  on_cuda(CudaGemm::fused, [] {
    for (const Case& c : {Case{1, 96, 96, Format::nf4, {}},
                          {16, 288, 1056, Format::nf4, {.block_size = 128}},
                          {17, 64, 160, Format::fp4, {.doubly = false, .scale = 0.75f}},
                          {70, 96, 288, Format::fp4, {.block_size = 32}},
                          {5, 72, 1031, Format::nf4, {.block_size = 48}},
                          {3, 32, 256, Format::nf4, {}, 200},   // cut within LoRA's term: behind
                          {3, 32, 257, Format::nf4, {}, 200}})  // whole steps, and one row more
      for (const bool nt : {true, false})
        for (const DType type : kDTypes) {
          const TestWeight w(c.format, nt ? c.N : c.K, nt ? c.K : c.N, c.options),
              lora(Format::f32, nt ? c.N : c.rank, nt ? c.rank : c.N, {.scale = 2.f});
          const TestMatrix x(DType::bf16, c.M, c.K, nt ? 8 - c.K % 8 : 3), s(DType::bf16, c.M, c.rank, 8);
          const TestMatrix residual(DType::f32, c.M, c.N, 1), bias(DType::f32, 1, c.N, 0);
          const GemmTerm terms[] = {{x.view(), w.view()}, {s.view(), lora.view()}};
          const GemmEpilogue epilogue{nt ? bias.view().row<float>(0) : nullptr, residual.view()};
          TestMatrix y(type, c.M, c.N, 3);
          run_planned(1, [&](Exec& e) { multiply(e, nt, terms, epilogue, y.view()); });
          expect_near(y.view(), gemm_ref<double>(terms, epilogue, c.M, c.N, nt), c.K + c.rank,
                      cat(c.M, "x", c.N, "x", c.K, " nt ", nt, " ", name_of(type)));
          EXPECT_TRUE(y.padding_untouched());
          if (HasFatalFailure()) return;
        }
  });
}

// Each term has its own format's values; as many as there may be, one of them empty.
TEST_F(GemmCuda, FusedTermsOfCodes) {
  on_cuda(CudaGemm::fused, [] {
    for (const bool nt : {true, false}) {
      std::deque<TestWeight> weights;
      std::deque<TestMatrix> x;
      std::vector<GemmTerm> terms;
      for (const int64_t k : {32, 64, 0, 160, 96, 32, 128, 64}) {
        const Format format = terms.size() % 2 == 0 ? Format::nf4 : Format::fp4;
        x.emplace_back(DType::bf16, 2, k, 8);
        weights.emplace_back(format, nt ? 32 : 160, nt ? 160 : 32, TestWeight::Options{.block_size = 32});
        WeightView w = weights.back().view();
        (nt ? w.cols : w.rows) = k;
        terms.push_back({x.back().view(), w});
      }
      TestMatrix y(DType::f32, 2, 32, 8);
      run_planned(1, [&](Exec& e) { multiply(e, nt, terms, {}, y.view()); });
      expect_near(y.view(), gemm_ref<double>(terms, {}, 2, 32, nt), 576, cat("nt ", nt));
    }
  });
}

TEST_F(GemmCuda, FusedGivesTheSameBitsInEveryVariant) {
  set_cuda_gemm(CudaGemm::fused);
  for (const testing::Body& body : testing::bodies()) {
    if (body.device.kind != DeviceKind::cuda) continue;
    SCOPED_TRACE(body.name());
    const testing::WithBody with(body);
    for (const int64_t M : {3, 20})
      for (const bool nt : {true, false}) {
        const TestWeight w(Format::nf4, nt ? 96 : 1120, nt ? 1120 : 96, {}),
            lora(Format::f32, nt ? 96 : 8, nt ? 8 : 96, {});
        const TestMatrix x(DType::bf16, M, 1120, 0), s(DType::bf16, M, 8, M == 3 ? 0 : 1);
        const GemmTerm terms[] = {{x.view(), w.view()}, {s.view(), lora.view()}};
        TestMatrix y(DType::f32, M, 96, 0);
        run_planned(1, [&](Exec& e) { multiply(e, nt, terms, {}, y.view()); });
        testing::WithBody::expect_repeats(y.bytes());
      }
  }
}

// A row of few has its bits whatever the others are: so have the tokens of one document, however many are
// generated.
TEST_F(GemmCuda, FewRowsDoNotCount) {
  on_cuda(CudaGemm::by_rows, [] {
    for (const bool nt : {true, false}) {
      const TestWeight w(Format::nf4, nt ? 96 : 1120, nt ? 1120 : 96, {}),
          lora(Format::f32, nt ? 96 : 72, nt ? 72 : 96, {});
      const TestMatrix x(DType::bf16, 64, 1120, 0), s(DType::bf16, 64, 72, 0);
      const auto run = [&](int64_t begin, int64_t count, TestMatrix& y) {
        const GemmTerm terms[] = {{x.view().row_range(begin, count), w.view()},
                                  {s.view().row_range(begin, count), lora.view()}};
        run_planned(1, [&](Exec& e) { multiply(e, nt, terms, {}, y.view().row_range(begin, count)); });
      };
      TestMatrix all(DType::f32, 64, 96, 0);
      run(0, 64, all);
      for (const auto& [begin, count] : {std::pair<int64_t, int64_t>{0, 1}, {47, 17}, {33, 16}}) {
        TestMatrix y(DType::f32, 64, 96, 0);
        run(begin, count, y);
        for (int64_t r = begin; r < begin + count; ++r)
          EXPECT_TRUE(same_row(all, y, r)) << r << " of " << count;
      }
    }
  });
}

// Few rows of 4-bit weights are the fused kernel's, more cuBLASLt's; of other weights all are. What was
// planned for the most rows serves fewer.
TEST_F(GemmCuda, RowsPickTheBody) {
  const TestWeight w(Format::nf4, 1024, 2048, {}), plain(Format::bf16, 1024, 2048, {}),
      ragged(Format::nf4, 1023, 2048, {}), wide(Format::f32, 1024, 520, {});
  const auto body = [](int64_t M, std::initializer_list<const TestWeight*> weights) {
    std::vector<GemmTerm> terms;
    for (const TestWeight* w : weights)
      terms.push_back({ConstMat(nullptr, DType::bf16, M, w->view().cols, w->view().cols), w->view()});
    return plan_gemm(GemmCall{terms, {}, Mat(nullptr, DType::bf16, M, terms[0].w.rows, 1024), true}).on;
  };
  EXPECT_EQ(body(1, {&w}), GemmOn::fused);
  EXPECT_EQ(body(kFewRows, {&w}), GemmOn::fused);
  EXPECT_EQ(body(kFewRows + 1, {&w}), GemmOn::library);
  EXPECT_EQ(body(1, {&plain}), GemmOn::library);
  EXPECT_EQ(body(1, {&w, &wide}), GemmOn::library);
  EXPECT_EQ(body(kFewRows + 1, {&ragged}), GemmOn::tiles);
  for (const TestWeight* weight : {&w, &ragged}) {
    size_t former = 0;
    for (const int64_t M : {0, 1, 16, 17, 64, 65, 512}) {
      const GemmTerm term{ConstMat(nullptr, DType::bf16, M, 2048, 2048), weight->view()};
      const size_t asked = gemm_workspace(
          GemmCall{{&term, 1}, {}, Mat(nullptr, DType::f32, M, weight->view().rows, 1024), true});
      EXPECT_GE(asked, former) << M;
      former = asked;
    }
  }
  set_cuda_gemm(CudaGemm::fused);
  EXPECT_EQ(body(70000, {&w}), GemmOn::fused);
  set_cuda_gemm(CudaGemm::dequant);
  EXPECT_EQ(body(1, {&w}), GemmOn::library);
  set_cuda_gemm(CudaGemm::own);
  EXPECT_EQ(body(1, {&w}), GemmOn::tiles);
}

// A step's products are the fused kernel's whatever the weights are, beside LoRA's and alone: the
// definition's sums, and a row's bits do not hang on how many there are.
TEST_F(GemmCuda, FewProductsOfAnyFormat) {
  on_cuda(CudaGemm::by_rows, [] {
    constexpr int64_t kK = 1056, kN = 72, kRank = 24;  // which a library would take, too
    const TestMatrix x(DType::bf16, 17, kK, 0), s(DType::bf16, 17, kRank, 0);
    const TestWeight lora(Format::f32, kN, kRank, {.scale = 2});
    for (const Format format : {Format::f32, Format::bf16, Format::int8, Format::q4_0, Format::nf4}) {
      SCOPED_TRACE(static_cast<int>(format));
      const TestWeight w(format, kN, kK, {});
      const auto run = [&](int64_t count, size_t of_terms, TestMatrix& y) {
        const GemmTerm terms[] = {{x.view().row_range(0, count), w.view()},
                                  {s.view().row_range(0, count), lora.view()}};
        run_planned(1, [&](Exec& e) {
          gemm_few_nt(e, "few", {terms, of_terms}, {}, y.view().row_range(0, count));
        });
        expect_near(y.view().row_range(0, count), gemm_ref<double>({terms, of_terms}, {}, count, kN, true),
                    kK + kRank, "few");
      };
      for (const size_t terms : {1u, 2u}) {
        TestMatrix all(DType::f32, 17, kN, 0), one(DType::f32, 17, kN, 0);
        run(17, terms, all);
        run(1, terms, one);
        EXPECT_TRUE(same_row(all, one, 0));
      }
    }
  });
}

TEST(GemmChoice, NamesItsBodies) {
  EXPECT_EQ(cuda_gemm_of("fused"), CudaGemm::fused);
  EXPECT_EQ(cuda_gemm_of("dequant"), CudaGemm::dequant);
  EXPECT_EQ(cuda_gemm_of("own"), CudaGemm::own);
  try {
    cuda_gemm_of("Fused");
    ADD_FAILURE() << "taken";
  } catch (const Error& e) {
    EXPECT_EQ(e.category(), Category::usage);
    EXPECT_STREQ(e.what(), "QLORA_GEMM=Fused: unknown; use fused, dequant or own, or unset it");
  }
}

}  // namespace
}  // namespace qlora
