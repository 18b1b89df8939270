#pragma once
#include "kernels/gemm/gemm_blocks.h"

// What gemm's dispatch hands to CUDA's bodies. x bf16: every weight is decoded to bf16 rows
// (gemm_decode_cuda.cu), then tensor cores multiply (gemm_cuda.cu). x fp32: fp32 multiply-adds, weights
// decoded element by element (gemm_fp32_cuda.cu). Either way an element is one chain of sums over k in an
// order that the shapes of one row and one column give: rows of a call change no bit.
namespace qlora {

inline constexpr int64_t kMostGemmTerms = 8;

void gemm_cuda(Exec& e, const GemmCall& call, bf16* workspace);
void gemm_tn_cuda(Exec& e, const GemmTnCall& call);

namespace cuda {

// A weight decoded to bf16, its rows `stride` elements apart: a multiple of 8, so that rows begin on 16
// bytes.
struct DecodedWeight {
  const bf16* data;
  int64_t stride;
};
inline int64_t decoded_stride(const WeightView& w) { return ceil_div(w.cols, 8) * 8; }
// Bf16 that needs no decoding is taken where it lies.
inline bool is_decoded(const WeightView& w) {
  return w.format == Format::bf16 && w.scale == 1 && w.cols % 8 == 0;
}
// Into `workspace`, of rows * decoded_stride elements.
void decode_weight(Exec& e, const WeightView& w, bf16* workspace);

void gemm_fp32(Exec& e, const GemmCall& call);
void gemm_tn_fp32(Exec& e, const GemmTnCall& call);

}  // namespace cuda

// Elements of gemm_cuda's workspace. Where y is fp32 the terms are added up in it one by one, and one decoded
// weight after the other has the place; else they lie side by side, as one sum over a longer K. (Here, since
// a run on CUDA is planned by builds without it, too.)
inline int64_t gemm_workspace_cuda(const GemmCall& call) {
  int64_t elements = 0;
  if (call.terms[0].x.dtype != DType::bf16) return elements;
  for (const GemmTerm& t : call.terms) {
    if (cuda::is_decoded(t.w)) continue;
    const int64_t size = t.w.rows * cuda::decoded_stride(t.w);
    elements = call.y.dtype == DType::f32 ? std::max(elements, size) : elements + size;
  }
  return elements;
}

}  // namespace qlora
