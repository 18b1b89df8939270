#pragma once
#include "memory/exec.h"
#include "memory/view.h"

namespace qlora {

enum class Activation : uint8_t { silu, gelu_tanh };

// h = act(gate) * up (SwiGLU, GeGLU: Shazeer 2020, arXiv:2002.05202). gate, up, h [T, F] share a dtype, fp32
// or bf16; fp32 arithmetic. h may be gate or up.
void gated_act_forward(Exec& e, Activation act, const ConstMat& gate, const ConstMat& up, const Mat& h);

// d_gate, d_up = (assigned) from d_h and the forward's inputs; all [T, F] of one dtype. d_gate may be gate,
// d_up may be up or d_h.
void gated_act_backward(Exec& e, Activation act, const ConstMat& d_h, const ConstMat& gate,
                        const ConstMat& up, const Mat& d_gate, const Mat& d_up);

}  // namespace qlora
