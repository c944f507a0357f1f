#pragma once

#include "cpu/dispatch.h"
#include "sample_sum.h"
#include "tensor.h"

namespace gmfast {

// A tensor (batch, groups, pixels, bins) of any strides, or without the last dimension: the element
// dimensions of (B, *D) as two, so that views of a convolution's output are walked as they lie.
struct SplineOperand {
  void* data = nullptr;
  DType dtype = DType::float32;
  int64_t batch_stride = 0, group_stride = 0, pixel_stride = 0, bin_stride = 0;
};

struct RationalQuadraticSpline {
  int64_t batch, groups, pixels, bins;
  double bound, min_bin_width, min_bin_height, min_derivative;
  bool linear_tails;  // bins - 1 raw derivatives; else bins + 1
  bool inverse;

  SplineOperand x, widths, heights, derivatives;
  SplineOperand y;
  void* log_derivative;  // (batch, groups * pixels) in the compute dtype, or null
  void* log_det;         // its sums (batch), or null
  SampleSum sum;         // how a CUDA kernel makes them

  int64_t elements, raw_derivatives;  // groups * pixels; bins -/+ 1

  DType compute() const {
    const DType parameters =
        compute_dtype(compute_dtype(widths.dtype, heights.dtype), derivatives.dtype);
    return compute_dtype(x.dtype, parameters);
  }
};

struct RationalQuadraticSplineBackward {
  RationalQuadraticSpline forward;  // y, log_derivative and log_det unused
  SplineOperand grad_y, grad_log;   // data null where the gradient is zero
  SplineOperand grad_x, grad_widths, grad_heights, grad_derivatives;  // null: not wanted
};

GMFAST_CPU_KERNEL(rational_quadratic_spline, RationalQuadraticSpline);
GMFAST_CPU_KERNEL(rational_quadratic_spline_backward, RationalQuadraticSplineBackward);

void rational_quadratic_spline_cuda(const RationalQuadraticSpline& args, void* stream);
void rational_quadratic_spline_backward_cuda(const RationalQuadraticSplineBackward& args,
                                             void* stream);

}  // namespace gmfast
