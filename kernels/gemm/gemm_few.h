#pragma once
#include "kernels/gemm/gemm.h"

namespace qlora {

// gemm_nt for generation, whose calls have a row or a few: nothing is packed into panels, each weight is
// decoded in registers and multiplied at once, by up to 4 rows. So a call costs little more than reading the
// stored bytes.
//
// Shapes, dtypes, aliasing and errors are gemm_nt's. Beside an fp32 x the weights that are multiplied are
// gemm_nt's too, to the last bit; beside a bf16 x those of formats with block or row scales are not rounded
// to bf16, which moves each by 2^-8 of itself at most. Sums are fp32, in an order that depends on shapes and
// ISA alone: not on threads, not on M, not on how rows are split over calls. (Training never calls this:
// there a row's bits are gemm_nt's.) On a CUDA device weights are rounded as gemm_nt's are, and bf16 is
// multiplied by the kernel that decodes as it multiplies, whatever the format (unless QLORA_GEMM says
// otherwise, gemm_choice.h): a row's bits are its own there among up to kFewRows.
void gemm_few_nt(Exec& e, const char* name, std::span<const GemmTerm> terms, const GemmEpilogue& epilogue,
                 const Mat& y);

}  // namespace qlora
