// KL divergence between diagonal Gaussians, per element.
#pragma once

#include "../common/kernel.h"
#include "../common/rows.h"

namespace gmfast {

struct GaussianKL {
  RowShape shape;
  DType compute;
  RowOperand mean1, logvar1, mean2, logvar2;
  RowOperand kl;
};

struct GaussianKLBackward {
  RowShape shape;
  DType compute;
  RowOperand grad;
  RowOperand mean1, logvar1, mean2, logvar2;
  RowOperand grad_mean1, grad_logvar1, grad_mean2, grad_logvar2;  // data null: not wanted
};

GMFAST_KERNEL(gaussian_kl, GaussianKL);
GMFAST_KERNEL(gaussian_kl_backward, GaussianKLBackward);

}  // namespace gmfast
