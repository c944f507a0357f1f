#pragma once

#include "../common/kernel.h"
#include "../common/tensor.h"

namespace gmfast {

// Of grids whose channels are the components of each element's mixture.
struct MixtureShape {
  int64_t batch = 0, rows = 0, columns = 0, components = 0;

  constexpr int64_t sample() const { return rows * columns; }
  constexpr int64_t numel() const { return batch * rows * columns; }
};

// y = logit of the mixture's CDF at x, or with `inverse` the y at which that is x.
struct LogisticMixtureCdf {
  MixtureShape shape;
  bool inverse = false;
  Grid x, logits, means, log_scales;
  Grid y;
  void* solution = nullptr;        // y contiguous, in the compute dtype; null: not wanted
  void* log_derivative = nullptr;  // contiguous, in the compute dtype
  void* log_det = nullptr;         // its sums (batch), in the compute dtype; null: not wanted
  void* scratch = nullptr;         // on a CUDA device, as SampleSum(batch, sample, 1) wants it

  DType compute() const {
    return compute_dtype(compute_dtype(x.dtype, logits.dtype),
                         compute_dtype(means.dtype, log_scales.dtype));
  }
};

// The gradients by x (of the direction called) and the parameters, from those of y and of the
// log-derivative. What is not wanted has no data, and so a gradient that is zero.
struct LogisticMixtureCdfBackward {
  MixtureShape shape;
  bool inverse = false;
  Grid grad_y, grad_log_derivative;   // strides 0 for a gradient of log_det
  Grid x, logits, means, log_scales;  // x is the data: of the inverse the output
  Grid grad_x, grad_logits, grad_means, grad_log_scales;

  DType compute() const {
    return compute_dtype(compute_dtype(x.dtype, logits.dtype),
                         compute_dtype(means.dtype, log_scales.dtype));
  }
};

GMFAST_KERNEL(logistic_mixture_cdf, LogisticMixtureCdf);
GMFAST_KERNEL(logistic_mixture_cdf_backward, LogisticMixtureCdfBackward);

}  // namespace gmfast
