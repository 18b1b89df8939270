// What the emulated cuBLASLt alone shows: test_cuda, on a card, has none of it.
#include <gtest/gtest.h>

#include <string>

#include "kernels/cuda/cublaslt.h"
#include "kernels/cuda/emulator.h"
#include "kernels/gemm/gemm.h"
#include "kernels/gemm/gemm_test_data.h"
#include "tests/support/gemm_on_cuda.h"

namespace qlora {
namespace {

using testing::run_planned;

class GemmEmulated : public GemmCuda {};

// Rows are part of the shape, as they may be on a card: so tests see what counts on more.
TEST_F(GemmEmulated, OtherRowsMayGiveOtherBits) {
  on_cuda(CudaGemm::dequant, [] {
    const TestWeight w(Format::bf16, 72, 320, {});
    const TestMatrix x(DType::bf16, 96, 320, 0);
    TestMatrix y(DType::f32, 96, 72, 0), half(y);
    const auto run = [&](int64_t count, TestMatrix& to) {
      const GemmTerm term{x.view().row_range(0, count), w.view()};
      run_planned(1, [&](Exec& e) { gemm_nt(e, "product", {&term, 1}, {}, to.view().row_range(0, count)); });
    };
    run(96, y);
    run(48, half);
    EXPECT_FALSE(same_row(y, half, 0) && same_row(y, half, 1) && same_row(y, half, 2));
  });
}

// The table in force picks the algorithm, and what it says is checked.
TEST_F(GemmEmulated, TheTableRules) {
  const TestWeight w(Format::bf16, 16, 640, {});
  const TestMatrix x(DType::bf16, 5, 640, 0);
  const GemmTerm term{x.view(), w.view()};
  const auto with = [&](uint64_t algorithm) {
    cuda::AlgorithmTable table;
    table.set("emulated", "1", "nt 5x16x640 fp32", {algorithm});
    set_gemm_algorithms(table);
    TestMatrix y(DType::f32, 5, 16, 0);
    on_cuda(CudaGemm::dequant, [&] {
      run_planned(1, [&](Exec& e) { gemm_nt(e, "product", {&term, 1}, {}, y.view()); });
    });
    return y;
  };
  const TestMatrix one = with(1), three = with(3);
  EXPECT_FALSE(same_bits(one, three));
  EXPECT_TRUE(same_bits(one, with(1)));
  EXPECT_NE(cuda::matmul_log().find(cuda::AlgorithmTable::line("emulated", "1", "nt 5x16x640 fp32", {3})),
            std::string::npos);
  try {
    cuda::AlgorithmTable table;
    table.set("emulated", "1", "nt 5x16x640 fp32", {99});
    set_gemm_algorithms(table);
    set_cuda_gemm(CudaGemm::dequant);
    const testing::WithBody with_body({{DeviceKind::cuda, 0}, active_isa(), 1});
    cuda::emulator::launches += 1;  // (none is to come)
    TestMatrix y(DType::f32, 5, 16, 0);
    run_planned(1, [&](Exec& e) { gemm_nt(e, "product", {&term, 1}, {}, y.view()); });
    ADD_FAILURE() << "multiplied";
  } catch (const Error& e) {
    EXPECT_EQ(e.category(), Category::input);
    EXPECT_NE(std::string(e.what()).find("nt 5x16x640 fp32"), std::string::npos);
  }
}

}  // namespace
}  // namespace qlora
