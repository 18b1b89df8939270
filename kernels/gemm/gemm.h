#pragma once
#include <cstdint>
#include <span>

#include "kernels/gemm/decode_ahead.h"
#include "memory/exec.h"
#include "memory/view.h"
#include "quant/weight_view.h"

namespace qlora {

// One product of a sum. `w` is decoded on the fly from its stored format.
struct GemmTerm {
  ConstMat x;    // [M, K], fp32 or bf16
  WeightView w;  // gemm_nt: [N, K]; gemm_nn: [K, N]
};

// What is added to the sum before its one rounding to y's dtype.
struct GemmEpilogue {
  const float* bias = nullptr;  // fp32 [N]
  ConstMat residual;            // [M, N] fp32 or bf16, may be y itself
};

// y[M, N] = sum over terms of x_t [M, K_t] w_t^T + bias + residual.   (a linear's forward; LoRA is a second
// term (S, sB)) y[M, N] = sum over terms of x_t [M, K_t] w_t   + residual.          (its backward to the
// input; LoRA is (dS, A))
//
// y is fp32 or bf16; x's of one call share a dtype. When that dtype is bf16, every decoded weight is rounded
// to bf16 before the product (compute type bf16), else it is taken in fp32. Products and sums are fp32, in an
// order that depends on shapes and ISA alone: not on threads, not on M, not on how rows are split over calls.
// On a CUDA device calls of the same shapes give the same bits there, whatever is planned or stored; M is one
// of them where bf16 is multiplied (cuBLASLt picks its algorithm by it, few rows have a kernel of their own:
// gemm_choice.h), so what is computed again is computed in the same rows. y may alias an epilogue's residual
// but no x. Workspace comes from e. `ahead`: decodes weights on a CUDA device, in a pass of it; null: they
// are decoded in the product's turn. Category::internal on shapes that do not fit.
void gemm_nt(Exec& e, const char* name, std::span<const GemmTerm> terms, const GemmEpilogue& epilogue,
             const Mat& y, DecodeAhead* ahead = nullptr);
void gemm_nn(Exec& e, const char* name, std::span<const GemmTerm> terms, const GemmEpilogue& epilogue,
             const Mat& y, DecodeAhead* ahead = nullptr);

// out[P, Q] (fp32) += scale * a[M, P]^T b[M, Q]: LoRA's dA and dB. a, b fp32 or bf16, not necessarily the
// same. The sum runs over rows in order, in fp32 chunks of a fixed length, whatever the threads; on a CUDA
// device in an order of the shapes' own.
void gemm_tn(Exec& e, const char* name, const ConstMat& a, const ConstMat& b, float scale, const Mat& out);

}  // namespace qlora
