// The spline's kernels: see test_rational_quadratic_spline.py.
#include "../../csrc/cuda/rational_quadratic_spline.cu"

#include "driver.h"

using namespace gmfast;

void run_case(Cases& cases) {
  const bool backward = cases.integer();
  RationalQuadraticSpline args{};
  args.batch = cases.integer();
  args.rows = cases.integer();
  args.columns = cases.integer();
  args.bins = cases.integer();
  args.bound = cases.real();
  args.min_bin_width = args.min_bin_height = args.min_derivative = cases.real();
  args.linear_tails = cases.integer();
  args.inverse = cases.integer();
  args.elements = args.rows * args.columns;
  args.raw_derivatives = args.linear_tails ? args.bins - 1 : args.bins + 1;
  args.x = cases.grid();
  args.widths = cases.grid();
  args.heights = cases.grid();
  args.derivatives = cases.grid();
  if (backward) {
    RationalQuadraticSplineBackward all{};
    all.forward = args;
    all.grad_y = cases.grid();
    all.grad_log = cases.grid();
    all.grad_x = cases.grid();
    all.grad_widths = cases.grid();
    all.grad_heights = cases.grid();
    all.grad_derivatives = cases.grid();
    return rational_quadratic_spline_backward_cuda(all, nullptr);
  }
  args.y = cases.grid();
  args.log_derivative = cases.memory();
  args.log_det = cases.memory();
  args.sum = SampleSum(args.batch, args.elements, 2);
  std::vector<double> scratch(args.sum.scratch_bytes() / 8, -1.0);
  args.sum.scratch = scratch.data();
  rational_quadratic_spline_cuda(args, nullptr);
}
