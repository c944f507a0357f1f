#pragma once

#include "cpu/dispatch.h"
#include "tensor.h"

namespace gmfast {

// A tensor (batch, rows, columns) of elements, or (batch, rows, columns, components), of any
// strides, counted in elements. Two dimensions hold a sample's, so that the (C, K, H, W) of a
// convolution is read in place.
struct MixtureTensor {
  void* data = nullptr;
  DType dtype = DType::float32;
  int64_t batch_stride = 0, row_stride = 0, column_stride = 0, component_stride = 0;
};

struct MixtureShape {
  int64_t batch = 0, rows = 0, columns = 0, components = 0;

  constexpr int64_t sample() const { return rows * columns; }
  constexpr int64_t numel() const { return batch * rows * columns; }
};

// y = logit of the mixture's CDF at x, or with `inverse` the y at which that is x.
struct LogisticMixtureCdf {
  MixtureShape shape;
  bool inverse = false;
  MixtureTensor x, logits, means, log_scales;
  MixtureTensor y;
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
  MixtureTensor grad_y, grad_log_derivative;   // strides 0 for a gradient of log_det
  MixtureTensor x, logits, means, log_scales;  // x is the data: of the inverse the output
  MixtureTensor grad_x, grad_logits, grad_means, grad_log_scales;

  DType compute() const {
    return compute_dtype(compute_dtype(x.dtype, logits.dtype),
                         compute_dtype(means.dtype, log_scales.dtype));
  }
};

GMFAST_CPU_KERNEL(logistic_mixture_cdf, LogisticMixtureCdf);
GMFAST_CPU_KERNEL(logistic_mixture_cdf_backward, LogisticMixtureCdfBackward);

void logistic_mixture_cdf_cuda(const LogisticMixtureCdf& args, void* stream);
void logistic_mixture_cdf_backward_cuda(const LogisticMixtureCdfBackward& args, void* stream);

}  // namespace gmfast
