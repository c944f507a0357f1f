// The logistic mixture CDF transform of Flow++: logit of the CDF, its inverse and the gradients.
#pragma once

#include "../common/kernel.h"
#include "../common/tensor.h"

namespace gmfast {

// Elements are (batch, rows, columns); the channels of a parameter's grid are its components.
struct MixtureShape {
  int64_t batch = 0, rows = 0, columns = 0, components = 0;

  constexpr int64_t sample() const { return rows * columns; }
  constexpr int64_t numel() const { return batch * rows * columns; }
};

// y = logit of the mixture's CDF at x; with `inverse`, the y for which that is x.
struct LogisticMixtureCdf {
  MixtureShape shape;
  bool inverse = false;
  Grid x, logits, means, log_scales;
  Grid y;
  void* solution = nullptr;        // y contiguous, in the compute dtype; null: not wanted
  void* log_derivative = nullptr;  // contiguous, in the compute dtype
  void* log_det = nullptr;         // its sums (batch), in the compute dtype; null: not wanted
  void* scratch = nullptr;         // on a GPU, of SampleSum(batch, sample, 1)

  DType compute() const {
    return compute_dtype(compute_dtype(x.dtype, logits.dtype),
                         compute_dtype(means.dtype, log_scales.dtype));
  }
};

// Gradients with respect to the input and the parameters, from those of y and the log-derivative.
// Data null: an input gradient is zero, a result not wanted.
struct LogisticMixtureCdfBackward {
  MixtureShape shape;
  bool inverse = false;
  Grid grad_y, grad_log_derivative;   // of log_det: row and column strides 0
  Grid x, logits, means, log_scales;  // x is the data: with `inverse`, the output
  Grid grad_x, grad_logits, grad_means, grad_log_scales;

  DType compute() const {
    return compute_dtype(compute_dtype(x.dtype, logits.dtype),
                         compute_dtype(means.dtype, log_scales.dtype));
  }
};

GMFAST_KERNEL(logistic_mixture_cdf, LogisticMixtureCdf);
GMFAST_KERNEL(logistic_mixture_cdf_backward, LogisticMixtureCdfBackward);

}  // namespace gmfast
