// Gated activation: tanh of one half of x along a dimension times the sigmoid of the other.
#pragma once

#include "../common/kernel.h"
#include "../common/rows.h"

namespace gmfast {

struct GatedActivation {
  RowShape shape;
  PairOperand x;
  PairOperand residual;  // added; data null: none
  PairOperand y;
};

struct GatedActivationBackward {
  RowShape shape;
  PairOperand grad_y, x, grad_x;
};

GMFAST_KERNEL(gated_activation, GatedActivation);
GMFAST_KERNEL(gated_activation_backward, GatedActivationBackward);

}  // namespace gmfast
