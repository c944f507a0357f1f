// Monotonic rational-quadratic splines (neural spline flows), with log-derivatives; the formula is
// in csrc/math/rational_quadratic_spline.h.
#pragma once

#include "../common/kernel.h"
#include "../common/sample_sum.h"
#include "../common/tensor.h"

namespace gmfast {

// Elements are (batch, rows, columns); the channels of a parameter's grid are its bins or knots.
struct RationalQuadraticSpline {
  int64_t batch, rows, columns, bins;
  double bound, min_bin_width, min_bin_height, min_derivative;
  bool linear_tails;  // the outer derivatives are 1: bins - 1 raw derivatives, else bins + 1
  bool inverse;

  Grid x, widths, heights, derivatives;
  Grid y;
  void* log_derivative;  // (batch, rows * columns) in the compute dtype, or null
  void* log_det;         // its sums (batch), or null
  SampleSum sum;         // on a GPU

  int64_t elements, raw_derivatives;  // rows * columns; bins - 1 or bins + 1

  DType compute() const {
    const DType parameters =
        compute_dtype(compute_dtype(widths.dtype, heights.dtype), derivatives.dtype);
    return compute_dtype(x.dtype, parameters);
  }
};

struct RationalQuadraticSplineBackward {
  RationalQuadraticSpline forward;                           // y, log_derivative and log_det unused
  Grid grad_y, grad_log;                                     // data null: zero
  Grid grad_x, grad_widths, grad_heights, grad_derivatives;  // data null: not wanted
};

GMFAST_KERNEL(rational_quadratic_spline, RationalQuadraticSpline);
GMFAST_KERNEL(rational_quadratic_spline_backward, RationalQuadraticSplineBackward);

}  // namespace gmfast
