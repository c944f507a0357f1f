#pragma once

#include "../common/kernel.h"
#include "../common/sample_sum.h"
#include "../common/tensor.h"

namespace gmfast {

// Of grids whose channels are the widths, heights or derivatives of each element's bins.
struct RationalQuadraticSpline {
  int64_t batch, rows, columns, bins;
  double bound, min_bin_width, min_bin_height, min_derivative;
  bool linear_tails;  // bins - 1 raw derivatives; else bins + 1
  bool inverse;

  Grid x, widths, heights, derivatives;
  Grid y;
  void* log_derivative;  // (batch, rows * columns) in the compute dtype, or null
  void* log_det;         // its sums (batch), or null
  SampleSum sum;         // how a CUDA kernel makes them

  int64_t elements, raw_derivatives;  // rows * columns; bins -/+ 1

  DType compute() const {
    const DType parameters =
        compute_dtype(compute_dtype(widths.dtype, heights.dtype), derivatives.dtype);
    return compute_dtype(x.dtype, parameters);
  }
};

struct RationalQuadraticSplineBackward {
  RationalQuadraticSpline forward;                           // y, log_derivative and log_det unused
  Grid grad_y, grad_log;                                     // data null where the gradient is zero
  Grid grad_x, grad_widths, grad_heights, grad_derivatives;  // null: not wanted
};

GMFAST_KERNEL(rational_quadratic_spline, RationalQuadraticSpline);
GMFAST_KERNEL(rational_quadratic_spline_backward, RationalQuadraticSplineBackward);

}  // namespace gmfast
