#include <gtest/gtest.h>

#include "kernels/common/cpu_facts.h"
#include "kernels/gemm/gemm_test_data.h"
#include "tests/isas/emulator.h"
#include "tests/support/run_op.h"
#include "tests/support/tensor.h"

namespace qlora {
namespace {

// That this program's products are emulated, whatever the CPU has.
TEST(Emulation, IsWhatMultiplies) {
  const std::string missing = lacking(Isa::avx512, this_cpu());
  if (!missing.empty()) GTEST_SKIP() << "emulated tiles are AVX-512 code: this machine lacks " << missing;
  for (const Isa isa : {Isa::avx512bf16, Isa::amx}) {
    const testing::WithIsa with(isa);
    const TestWeight w(Format::nf4, 64, 64, {});
    const TestMatrix x(DType::bf16, 64, 64, 0);
    TestMatrix y(DType::f32, 64, 64, 0);
    const GemmTerm term{x.view(), w.view()};
    const int64_t before = emulated::products;
    testing::run_planned(1, [&](Exec& e) { gemm_nt(e, "product", {&term, 1}, {}, y.view()); });
    // 16 rows, 16 columns and 32 terms each; or a row, 16 columns and 2 terms.
    const int64_t products = isa == Isa::amx ? 4 * 4 * 2 : 64 * 4 * 32;
    EXPECT_EQ(emulated::products - before, products) << name_of(isa);
  }
}

}  // namespace
}  // namespace qlora
