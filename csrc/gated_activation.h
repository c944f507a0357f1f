#pragma once

#include "cpu/dispatch.h"
#include "pairs.h"

namespace gmfast {

struct GatedActivation {
  PairShape shape;
  PairOperand x;
  PairOperand residual;  // data null where absent
  PairOperand y;
};

struct GatedActivationBackward {
  PairShape shape;
  PairOperand grad_y, x, grad_x;
};

GMFAST_CPU_KERNEL(gated_activation, GatedActivation);
GMFAST_CPU_KERNEL(gated_activation_backward, GatedActivationBackward);

void gated_activation_cuda(const GatedActivation& args, void* stream);
void gated_activation_backward_cuda(const GatedActivationBackward& args, void* stream);

}  // namespace gmfast
