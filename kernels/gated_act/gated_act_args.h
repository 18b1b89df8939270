#pragma once
#include "kernels/gated_act/gated_act.h"

// What gated_act's dispatch hands to its bodies.
namespace qlora {

struct GatedAct {
  Activation act;
  ConstMat d_h, gate, up;  // d_h: backward only
  Mat out0, out1;          // h; or d_gate and d_up
};

void gated_act_forward_cuda(Exec& e, const GatedAct& a);
void gated_act_backward_cuda(Exec& e, const GatedAct& a);

}  // namespace qlora
