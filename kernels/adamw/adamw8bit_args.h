#pragma once
#include "kernels/adamw/adamw8bit.h"
#include "kernels/adamw/adamw_args.h"

// What adamw8bit's dispatch hands to CUDA's body: the runs are checked.
namespace qlora {

// step: scalars only, its pointers are null.
void adamw8bit_cuda(Exec& e, const AdamWArgs& step, float* params, const float* grads,
                    const Moments8& moments);

}  // namespace qlora
