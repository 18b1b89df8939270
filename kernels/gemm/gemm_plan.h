#pragma once
#include <cstddef>

#include "kernels/cuda/cublaslt.h"
#include "kernels/gemm/gemm_blocks.h"

namespace qlora {

// What a product on a CUDA device is made by, and the workspace that takes: from types and shapes and what
// overrides the choice (gemm_choice.h), never from memory or addresses. Builds without CUDA plan with it,
// too.
enum class GemmOn : uint8_t {
  multiply_adds,  // fp32 (gemm_fp32_cuda.cu)
  tiles,          // weights decoded to bf16, own tensor-core kernel (gemm_cuda.cu)
  library,        // weights decoded to bf16, cuBLASLt (gemm_library_cuda.cu)
  fused,          // codes decoded in the kernel that multiplies (gemm_fused_cuda.cu)
};

// Parts of one workspace, in bytes, each a multiple of kCublasLtAlign.
struct GemmPlan {
  GemmOn on = GemmOn::multiply_adds;
  size_t library = 0;  // cuBLASLt's own
  size_t decoded = 0;  // weights in bf16
  size_t panel = 0;    // those that are decoded ahead (decode_ahead.h): no part of the workspace
  size_t packed = 0;   // the terms' x side by side
  size_t sums = 0;     // fp32, where y is not what the sum is kept in
  // With what it takes to begin on kCublasLtAlign.
  size_t bytes() const {
    const size_t all = library + decoded + packed + sums;
    return all == 0 ? 0 : all + cuda::kCublasLtAlign;
  }
};
GemmPlan plan_gemm(const GemmCall& call);
GemmPlan plan_gemm(const GemmTnCall& call);

// Bytes to ask for: enough for the same product of fewer rows, too, whatever makes that.
size_t gemm_workspace(const GemmCall& call);

// The parts as they lie.
struct GemmSpace {
  std::byte *library, *decoded, *packed, *sums;
  bool ahead;  // to a panel: large weights, and what is one operand with them
  GemmSpace(const GemmPlan& plan, void* workspace) {
    constexpr uintptr_t kAlign = cuda::kCublasLtAlign;
    library = static_cast<std::byte*>(workspace);
    library += (kAlign - reinterpret_cast<uintptr_t>(library) % kAlign) % kAlign;
    decoded = library + plan.library;
    packed = decoded + plan.decoded;
    sums = packed + plan.packed;
    ahead = plan.panel > 0;
  }
};

// Terms with something to add.
inline int64_t terms_of(const GemmCall& call) {
  return std::count_if(call.terms.begin(), call.terms.end(), [](const GemmTerm& t) { return t.x.cols > 0; });
}

// Worth a panel's turn. An adapter's, which are fp32, are not when they are a product of their own.
inline bool is_large(const WeightView& w) { return w.format != Format::f32; }

// On the library: whether the sum is kept in fp32, its terms added one by one; else y is bf16 and they are
// one sum over a longer K.
inline bool sums_in_fp32(const GemmCall& call) {
  return call.y.dtype == DType::f32 || call.epilogue.bias != nullptr ||
         (call.epilogue.residual && call.epilogue.residual.dtype != DType::bf16);
}

// On the fused kernel: how many steps the sum over all terms has, and into how many parts of it the work is
// cut so that there are blocks enough, which are added up in order: of few rows by the weights' shape alone,
// of more not at all.
inline constexpr int kGemmStep = 128;
int64_t gemm_steps(const GemmCall& call);
int gemm_splits(const GemmCall& call, int64_t rows);

namespace cuda {

// Whether the fused kernel copies w's codes as they lie: a scale for each 32 of a row.
bool reads_codes(const WeightView& w);

// The stride of a weight decoded to bf16: a multiple of 8, so that rows begin on 16 bytes.
inline int64_t decoded_stride(const WeightView& w) { return ceil_div(w.cols, 8) * 8; }
// Bf16 that needs no decoding is taken where it lies.
inline bool is_decoded(const WeightView& w) {
  return w.format == Format::bf16 && w.scale == 1 && w.cols % 8 == 0;
}

}  // namespace cuda
}  // namespace qlora
