#pragma once
#include <array>
#include <span>

#include "kernels/dropout/dropout.h"
#include "kernels/gemm/decode_ahead.h"
#include "memory/exec.h"
#include "model/adapter.h"
#include "quant/weight_view.h"

namespace qlora {

// Linears that read one input x: y_i = x W_i^T + b_i + s_i (drop_i(x) A_i^T) B_i^T. The base is frozen, so
// there is no dW anywhere: this file alone knows LoRA.
struct LinearGroup {
  struct Member {
    WeightView w;  // [out, in]
    const float* bias = nullptr;
    int rank = 0;       // 0: not adapted
    int64_t s_col = 0;  // its columns of S
    float scale = 1;
    const float* b = nullptr;  // [out, rank]
    float* db = nullptr;
    uint32_t module = 0;
  };
  std::array<Member, 3> member;
  int count = 0;
  int64_t in = 0;
  int64_t rank_sum = 0;      // columns of S
  const float* a = nullptr;  // the adapted members' A's, [rank_sum, in]
  float* da = nullptr;
  DecodeAhead* ahead = nullptr;  // on a CUDA device: where the members' weights are decoded
};

// Rows' places in the data, and p = 0 for no dropout.
struct DropoutRows {
  DropoutKey key;
  std::span<const uint64_t> places;
  DropoutRows row_range(int64_t begin, int64_t count) const {
    return {key, key.p > 0 ? places.subspan(static_cast<size_t>(begin), static_cast<size_t>(count)) : places};
  }
};

// S = drop(x) A^T [rows, rank_sum], in x's dtype. Nothing when no member is adapted.
void lora_down(Exec& e, const LinearGroup& g, const DropoutRows& drop, const ConstMat& x, const Mat& s);

// y_i (fp32 or bf16) for every member, S (see lora_down) written too. `residual` (may be empty, may be y[0])
// is added to y[0].
void linear_forward(Exec& e, const LinearGroup& g, const DropoutRows& drop, const ConstMat& x, const Mat& s,
                    std::span<const Mat> y, const ConstMat& residual);

// The same for a step of generation (gemm_few.h): without dropout.
void linear_step(Exec& e, const LinearGroup& g, const ConstMat& x, const Mat& s, std::span<const Mat> y,
                 const ConstMat& residual);

// linear_forward with S as it was computed before, for the first y.size() members.
void linear_up(Exec& e, const LinearGroup& g, const ConstMat& x, const ConstMat& s, std::span<const Mat> y,
               const ConstMat& residual);

// From dy_i (x's dtype), the forward's x and S: da, db += ; dx = (fp32 or x's dtype), or left out when it is
// empty (the input has no gradient).
void linear_backward(Exec& e, const LinearGroup& g, const DropoutRows& drop, const ConstMat& x,
                     const ConstMat& s, std::span<const ConstMat> dy, const Mat& dx);

}  // namespace qlora
