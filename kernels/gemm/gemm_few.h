#pragma once
#include "kernels/gemm/gemm.h"

namespace qlora {

// gemm_nt for generation, whose calls have a row or a few: nothing is packed into panels, each weight is
// decoded in registers and multiplied at once, by up to 4 rows. So a call costs little more than reading the
// stored bytes.
//
// Shapes, dtypes, aliasing and errors are gemm_nt's. Beside an fp32 x, and where weights have no scales, so are
// the weights that are multiplied, to the last bit. Beside a bf16 x products with codes are of integers, exact
// within a block (of 32; of 64 with nf4 and fp4): the block's x are rounded to 16 bits of the power of two that
// its greatest has, so that what is at least 2^-7 of that is not rounded and the rest by 1 / 32640 of it at
// most; the weights are not rounded to bf16 (which moves each by 2^-8 of itself at most), but nf4's codes to
// 1 / 8191. A block's x of less than 2^-112 count as 0; of NaN or Inf y is NaN. Rows of 4-bit codes that 64
// does not divide, and blocks of 32, are multiplied in fp32, with gemm_nt's weights. Sums are fp32, in an order
// that depends on shapes and ISA alone: not on threads, not on M, not on how rows are split over calls.
// (Training never calls this: there a row's bits are gemm_nt's.) On a CUDA device weights are rounded as
// gemm_nt's are, and bf16 is multiplied by the kernel that decodes as it multiplies, whatever the format
// (unless QLORA_GEMM says otherwise, gemm_choice.h): a row's bits are its own there among up to kFewRows.
void gemm_few_nt(Exec& e, const char* name, std::span<const GemmTerm> terms, const GemmEpilogue& epilogue,
                 const Mat& y);

}  // namespace qlora
