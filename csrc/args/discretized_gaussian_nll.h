// Negative log-likelihood of a discretized Gaussian, per element.
#pragma once

#include "../common/kernel.h"
#include "../common/rows.h"

namespace gmfast {

struct DiscretizedGaussianNLL {
  RowShape shape;
  DType compute;
  int64_t num_classes;
  bool exact;  // else improved DDPM's approximation
  RowOperand x, mean, log_scale;
  RowOperand nll;
};

struct DiscretizedGaussianNLLBackward {
  RowShape shape;
  DType compute;
  int64_t num_classes;
  bool exact;
  RowOperand grad;
  RowOperand x, mean, log_scale;
  RowOperand grad_x, grad_mean, grad_log_scale;  // data null: not wanted
};

GMFAST_KERNEL(discretized_gaussian_nll, DiscretizedGaussianNLL);
GMFAST_KERNEL(discretized_gaussian_nll_backward, DiscretizedGaussianNLLBackward);

}  // namespace gmfast
