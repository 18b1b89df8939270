#include "kernels/gemm/gemm_few.h"

#include <array>
#include <bit>
#include <limits>
#include <type_traits>
#include <utility>

#include "kernels/common/rows.h"
#include "kernels/gemm/gemm_cuda.h"
#include "kernels/gemm/gemm_few_args.h"

#include "quant/codebook.h"

#define QLORA_BODY "kernels/gemm/weight_row.inl"
#include "kernels/common/for_each_isa.h"

// The body for each ISA, upon its products of integers.
namespace qlora::scalar {
#include "kernels/gemm/few_ints_scalar.inl"
#include "kernels/gemm/gemm_few_cpu.inl"
}  // namespace qlora::scalar
#if defined(__x86_64__)
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
namespace qlora::avx2 {
#include "kernels/gemm/few_ints_avx2.inl"
#include "kernels/gemm/gemm_few_cpu.inl"
}  // namespace qlora::avx2
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
namespace qlora::avx512 {
#include "kernels/gemm/few_dots_avx512.inl"
#include "kernels/gemm/few_ints_avx512.inl"
#include "kernels/gemm/gemm_few_cpu.inl"
}  // namespace qlora::avx512
#pragma GCC pop_options
// Not an ISA: integers are what they are, and the rest is avx512's.
#pragma GCC push_options
#pragma GCC target("avx512vnni,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
namespace qlora::avx512vnni {
#include "kernels/common/simd_avx512.inl"
#include "kernels/gemm/weight_row.inl"

#include "kernels/gemm/few_dots_vnni.inl"
#include "kernels/gemm/few_ints_avx512.inl"
#include "kernels/gemm/gemm_few_cpu.inl"
}  // namespace qlora::avx512vnni
#pragma GCC pop_options
#endif

namespace qlora {
namespace {

#if defined(__x86_64__)
auto part_in_force() {
  const bool vnni = few_vnni() && __builtin_cpu_supports("avx512vnni");
  return active_isa() >= Isa::avx512 && vnni ? &avx512vnni::gemm_few_part : QLORA_PICK(gemm_few_part);
}
#else
auto part_in_force() { return &scalar::gemm_few_part; }
#endif

}  // namespace

bool& few_vnni() {
  static bool on = true;
  return on;
}

void gemm_few_nt(Exec& e, const char* name, std::span<const GemmTerm> terms, const GemmEpilogue& epilogue,
                 const Mat& y) {
  if (e.on_cuda()) return gemm_on_cuda(e, name, {terms, epilogue, y, true, true});
  const GemmCall call{terms, epilogue, y, true};
  check_gemm(name, call);
  const GemmCost cost = gemm_cost(call);
  FewRows x{nullptr, FewRows::stride_of(terms)};
  const auto floats = static_cast<size_t>(FewRows::rows_of(y.rows) * x.stride);
  const Buffer memory = e.allocate(Region::workspace, "few rows", floats * sizeof(float));
  if (!e.op(name, cost.flops, cost.bytes_read, y.bytes())) return;
  x.data = memory.as<float>();
  QLORA_DISPATCH(gemm_few_rows, call, x);
  // Whole multiples of the outputs that go side by side; some tasks a thread, since their cores are not
  // alike.
  const int64_t cols = std::clamp<int64_t>(ceil_div(y.cols, int64_t{4} * e.threads()) / 16 * 16, 16, 512);
  const auto part = part_in_force();
  e.parallel(ceil_div(y.cols, cols),
             [&](int64_t task, int) { part(call, x, task * cols, std::min(y.cols, (task + 1) * cols)); });
}

}  // namespace qlora
