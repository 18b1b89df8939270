#include "kernels/gemm/gemm_plan.h"

#include <algorithm>

#include "kernels/gemm/gemm_choice.h"

namespace qlora {
namespace {

size_t whole(int64_t bytes) {
  constexpr auto kAlign = static_cast<int64_t>(cuda::kCublasLtAlign);
  return static_cast<size_t>(ceil_div(bytes, kAlign) * kAlign);
}

// Rows of whole eights: base addresses are another matter, which a plan does not know (gemm_cuda.cu).
bool in_eights(const ConstMat& m) { return m.cols % 8 == 0 && m.stride % 8 == 0; }

bool for_library(const GemmCall& call) {
  for (const GemmTerm& t : call.terms)
    if (!in_eights(t.x)) return false;
  const ConstMat& residual = call.epilogue.residual;
  return in_eights(call.y) && (!residual || in_eights(residual)) && terms_of(call) > 0;
}

// Weights in bf16: all of a sum that is made at once, else the largest. What is bf16 already stays where it
// is, but in one operand of the library's.
size_t decoded_bytes(const GemmCall& call, bool at_once, bool one_operand) {
  int64_t elements = 0;
  for (const GemmTerm& t : call.terms) {
    const bool stays = cuda::is_decoded(t.w) && !one_operand;
    const int64_t size = stays ? 0 : t.w.rows * cuda::decoded_stride(t.w);
    elements = at_once ? elements + size : std::max(elements, size);
  }
  return whole(elements * static_cast<int64_t>(sizeof(bf16)));
}

}  // namespace

GemmPlan plan_gemm(const GemmCall& call) {
  GemmPlan plan;
  if (call.terms[0].x.dtype != DType::bf16) return plan;
  plan.on = cuda_gemm() != CudaGemm::own && for_library(call) ? GemmOn::library : GemmOn::tiles;
  plan.decoded = decoded_bytes(call, call.y.dtype != DType::f32, false);
  if (plan.on == GemmOn::tiles) return plan;
  // Operands off 16 bytes, which a plan does not know, are left to the tiles: room for what they decode is
  // kept.
  const bool at_once = !sums_in_fp32(call);
  plan.decoded = std::max(plan.decoded, decoded_bytes(call, at_once, at_once && terms_of(call) > 1));
  plan.library = cuda::kCublasLtWorkspace;
  const int64_t rows = call.y.rows;
  int64_t sum_k = 0;
  for (const GemmTerm& t : call.terms) sum_k += t.x.cols;
  if (at_once && terms_of(call) > 1) plan.packed = whole(rows * sum_k * static_cast<int64_t>(sizeof(bf16)));
  if (!at_once && call.y.dtype != DType::f32)
    plan.sums = whole(rows * call.y.cols * static_cast<int64_t>(sizeof(float)));
  return plan;
}

GemmPlan plan_gemm(const GemmTnCall& call) {
  GemmPlan plan;
  if (call.a.dtype != DType::bf16 || call.b.dtype != DType::bf16) return plan;
  const bool library =
      cuda_gemm() != CudaGemm::own && in_eights(call.a) && in_eights(call.b) && in_eights(call.out);
  plan.on = library ? GemmOn::library : GemmOn::tiles;
  if (library) plan.library = cuda::kCublasLtWorkspace;
  return plan;
}

}  // namespace qlora
