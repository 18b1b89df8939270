#include "kernels/gemm/gemm_few.h"

#include <array>
#include <type_traits>
#include <utility>

#include "kernels/common/rows.h"
#include "kernels/gemm/gemm_cuda.h"
#include "kernels/gemm/gemm_few_args.h"

#include "quant/codebook.h"

#define QLORA_BODY "kernels/gemm/gemm_few_cpu.inl"
#include "kernels/common/for_each_isa.h"

namespace qlora {

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
  const auto part = QLORA_PICK(gemm_few_part);
  e.parallel(ceil_div(y.cols, cols),
             [&](int64_t task, int) { part(call, x, task * cols, std::min(y.cols, (task + 1) * cols)); });
}

}  // namespace qlora
