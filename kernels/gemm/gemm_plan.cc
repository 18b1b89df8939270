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

// Room for weights in bf16: all of a sum that is made at once, else the largest. What is bf16 already stays
// where it is, but in one operand of the library's. Ahead goes what is large, and what is one operand with
// it.
void add_decoded(const GemmCall& call, bool at_once, bool one_operand, GemmPlan& plan) {
  int64_t here = 0, ahead = 0, adapters = 0;
  for (const GemmTerm& t : call.terms) {
    const bool stays = cuda::is_decoded(t.w) && !one_operand;
    const int64_t size = stays ? 0 : t.w.rows * cuda::decoded_stride(t.w);
    int64_t& elements = call.ahead == nullptr ? here : is_large(t.w) ? ahead : adapters;
    elements = at_once ? elements + size : std::max(elements, size);
  }
  (at_once && ahead > 0 ? ahead : here) += adapters;
  const auto room = [](int64_t elements) { return whole(elements * static_cast<int64_t>(sizeof(bf16))); };
  plan.decoded = std::max(plan.decoded, room(here));
  plan.panel = std::max(plan.panel, room(ahead));
}

bool is_4_bit(const WeightView& w) { return w.format == Format::nf4 || w.format == Format::fp4; }

// 4-bit weights, and beside them no more than LoRA's: other formats are decoded one by one in every block.
bool for_fused(const GemmCall& call) {
  constexpr int64_t kMostBeside = 512;
  bool any = false;
  for (const GemmTerm& t : call.terms) {
    any = any || is_4_bit(t.w);
    if (!is_4_bit(t.w) && t.x.cols > kMostBeside) return false;
  }
  return any;
}

GemmPlan plan_of(const GemmCall& call, int64_t rows) {
  GemmPlan plan;
  if (call.terms[0].x.dtype != DType::bf16) return plan;
  const CudaGemm choice = cuda_gemm();
  if ((call.few || for_fused(call)) &&
      (choice == CudaGemm::fused || (choice == CudaGemm::by_rows && rows <= kFewRows))) {
    plan.on = GemmOn::fused;
    const int64_t splits = gemm_splits(call, rows);
    if (splits > 1) plan.sums = whole(splits * rows * call.y.cols * static_cast<int64_t>(sizeof(float)));
    return plan;
  }
  plan.on = cuda_gemm() != CudaGemm::own && for_library(call) ? GemmOn::library : GemmOn::tiles;
  add_decoded(call, call.y.dtype != DType::f32, false, plan);
  if (plan.on == GemmOn::tiles) return plan;
  // Operands off 16 bytes, which a plan does not know, are left to the tiles: room for what they decode is
  // kept.
  const bool at_once = !sums_in_fp32(call);
  add_decoded(call, at_once, at_once && terms_of(call) > 1, plan);
  plan.library = cuda::kCublasLtWorkspace;
  int64_t sum_k = 0;
  for (const GemmTerm& t : call.terms) sum_k += t.x.cols;
  if (at_once && terms_of(call) > 1) plan.packed = whole(rows * sum_k * static_cast<int64_t>(sizeof(bf16)));
  if (!at_once && call.y.dtype != DType::f32)
    plan.sums = whole(rows * call.y.cols * static_cast<int64_t>(sizeof(float)));
  return plan;
}

}  // namespace

GemmPlan plan_gemm(const GemmCall& call) { return plan_of(call, call.y.rows); }

size_t gemm_workspace(const GemmCall& call) {
  const int64_t rows = call.y.rows;
  return std::max(plan_of(call, rows).bytes(), plan_of(call, std::min(rows, kFewRows)).bytes());
}

int64_t gemm_steps(const GemmCall& call) {
  int64_t steps = 0;
  for (const GemmTerm& t : call.terms)
    steps += ceil_div(t.x.cols, cuda::reads_codes(t.w) ? kGemmStep : kGemmStep / 4);
  return steps;
}

// Some 256 blocks of 64 columns, each with four steps at least.
int gemm_splits(const GemmCall& call, int64_t rows) {
  if (rows > kFewRows) return 1;
  const int64_t tiles = std::max<int64_t>(1, ceil_div(call.y.cols, 64));
  return static_cast<int>(std::clamp<int64_t>(std::min(256 / tiles, gemm_steps(call) / 4), 1, 16));
}

bool cuda::reads_codes(const WeightView& w) {
  return is_4_bit(w) && w.cols % 32 == 0 && w.block_size >= 32 && (w.block_size & (w.block_size - 1)) == 0;
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
