#pragma once
#include <cstdint>
#include <string>

#include "kernels/cuda/algorithm_table.h"

namespace qlora {

// What multiplies bf16 on a CUDA device, by shapes alone; all that overrides it is named here. fp32 has one
// body.
enum class CudaGemm : uint8_t {
  by_rows,  // calls of kFewRows rows by 4-bit weights: fused; else dequant
  fused,    // whatever is 4-bit by the kernel that decodes as it multiplies; the rest as dequant
  dequant,  // weights decoded to bf16, then cuBLASLt; what that is not made for (rows off 16 bytes): own
  own,      // weights decoded to bf16, then this program's kernel: cuBLASLt is not needed
};
inline constexpr int64_t kFewRows = 64;

// The one in force: QLORA_GEMM=fused|dequant|own where set (Category::usage when it is another word), else
// by_rows.
CudaGemm cuda_gemm();
void set_cuda_gemm(CudaGemm choice);
CudaGemm cuda_gemm_of(const std::string& name);

// Whether training decodes weights ahead where memory has room (decode_ahead.h): of the bits it changes none.
// QLORA_DECODE=ahead|inline where set (Category::usage when it is another word), else ahead.
bool decodes_ahead();
void set_decodes_ahead(bool on);
bool decodes_ahead_of(const std::string& name);

// The table of cuBLASLt's algorithms in force: the file that QLORA_GEMM_TABLE names, else an empty one (the
// library's first proposals). Its hash() is part of what makes a run's bits.
const cuda::AlgorithmTable& gemm_algorithms();
void set_gemm_algorithms(cuda::AlgorithmTable table);

}  // namespace qlora
