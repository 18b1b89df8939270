#pragma once
#include "kernels/attention/attention_args.h"

// The files that attention's CUDA body is made of: attention_cuda.cu picks among them.
namespace qlora::attention {

// On tensor cores: attention_forward_cuda.cu, attention_backward_cuda.cu.
void forward_bf16_cuda(Exec& e, const Args& a, const Segments& docs);
void backward_bf16_cuda(Exec& e, const Args& a, const Segments& docs);

// fp32 multiply-adds: attention_fp32_cuda.cu.
void forward_fp32_cuda(Exec& e, const Args& a, const Segments& docs);
void backward_fp32_cuda(Exec& e, const Args& a, const Segments& docs);

}  // namespace qlora::attention
