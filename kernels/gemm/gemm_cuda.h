#pragma once
#include "kernels/gemm/gemm_plan.h"

// What gemm's dispatch hands to CUDA's bodies, and these to each other: plan_gemm says which of them, and
// what the workspace holds. By tiles and by multiply-adds an element is one chain of sums over k in an order
// that the shapes of one row and one column give: rows of a call change no bit.
namespace qlora {

inline constexpr int64_t kMostGemmTerms = 8;

// The whole op on a CUDA device: checks, workspace, body.
void gemm_on_cuda(Exec& e, const char* name, const GemmCall& call);

// Outputs that are not empty; for gemm_tn, operands too. workspace: plan_gemm(call).bytes().
void gemm_cuda(Exec& e, const GemmCall& call, void* workspace);
void gemm_tn_cuda(Exec& e, const GemmTnCall& call, void* workspace);

namespace cuda {

// What a thread moves at once: 16 bytes of bf16.
inline constexpr int kPer = 8;
struct [[gnu::may_alias]] alignas(16) Eight {
  uint32_t pairs[kPer / 2];
};

// A weight to bf16 rows at `out`, `stride` elements apart (a multiple of 8; out on 16 bytes): w's columns,
// and zeros up to the next multiple of 8.
void decode_weight(Exec& e, const WeightView& w, bf16* out, int64_t stride);

// Where one product's weights are decoded: in its workspace, or, with `ahead`, in a panel, on the stream that
// is ahead.
class DecodedWeights {
 public:
  DecodedWeights(Exec& e, DecodeAhead* ahead, std::byte* workspace)
      : exec_(e), ahead_(ahead), data_(ahead == nullptr ? workspace : ahead->take()) {}
  bf16* data() const { return reinterpret_cast<bf16*>(data_); }
  // As decode_weight.
  void decode(const WeightView& w, bf16* out, int64_t stride) const {
    decode_weight(ahead_ != nullptr ? ahead_->stream() : exec_, w, out, stride);
  }
  // All are: the product comes next.
  void ready() const {
    if (ahead_ != nullptr) ahead_->filled(exec_);
  }
  // It is on its stream.
  void read() const {
    if (ahead_ != nullptr) ahead_->read(exec_);
  }

 private:
  Exec& exec_;
  DecodeAhead* ahead_;
  std::byte* data_;
};
// Of a term that is added by itself.
DecodedWeights decoded_weight(Exec& e, const GemmCall& call, const GemmTerm& term, const GemmSpace& space);

void gemm_fp32(Exec& e, const GemmCall& call);
void gemm_tn_fp32(Exec& e, const GemmTnCall& call);
void gemm_tiles(Exec& e, const GemmCall& call, const GemmSpace& space);
void gemm_tn_tiles(Exec& e, const GemmTnCall& call);
void gemm_fused(Exec& e, const GemmCall& call, const GemmSpace& space);
// Operands on 16 bytes (on_16_bytes).
void gemm_library(Exec& e, const GemmCall& call, const GemmSpace& space);
void gemm_tn_library(Exec& e, const GemmTnCall& call, const GemmSpace& space);

}  // namespace cuda
}  // namespace qlora
