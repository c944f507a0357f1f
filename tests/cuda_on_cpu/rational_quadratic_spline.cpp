// The spline's kernels: see test_rational_quadratic_spline.py.
#include "../../csrc/cuda/rational_quadratic_spline.cu"

#include "driver.h"

using namespace gmfast;

namespace {

SplineOperand operand(Cases& cases) {
  SplineOperand operand;
  operand.data = cases.memory();
  if (!operand.data) return operand;
  operand.dtype = DType(cases.integer());
  operand.data = static_cast<char*>(operand.data) + cases.integer();
  operand.batch_stride = cases.integer();
  operand.group_stride = cases.integer();
  operand.pixel_stride = cases.integer();
  operand.bin_stride = cases.integer();
  return operand;
}

}  // namespace

void run_case(Cases& cases) {
  const bool backward = cases.integer();
  RationalQuadraticSpline args{};
  args.batch = cases.integer();
  args.groups = cases.integer();
  args.pixels = cases.integer();
  args.bins = cases.integer();
  args.bound = cases.real();
  args.min_bin_width = args.min_bin_height = args.min_derivative = cases.real();
  args.linear_tails = cases.integer();
  args.inverse = cases.integer();
  args.elements = args.groups * args.pixels;
  args.raw_derivatives = args.linear_tails ? args.bins - 1 : args.bins + 1;
  args.x = operand(cases);
  args.widths = operand(cases);
  args.heights = operand(cases);
  args.derivatives = operand(cases);
  if (backward) {
    RationalQuadraticSplineBackward all{};
    all.forward = args;
    all.grad_y = operand(cases);
    all.grad_log = operand(cases);
    all.grad_x = operand(cases);
    all.grad_widths = operand(cases);
    all.grad_heights = operand(cases);
    all.grad_derivatives = operand(cases);
    return rational_quadratic_spline_backward_cuda(all, nullptr);
  }
  args.y = operand(cases);
  args.log_derivative = cases.memory();
  args.log_det = cases.memory();
  args.sum = SampleSum(args.batch, args.elements, 2);
  std::vector<double> scratch(args.sum.scratch_bytes() / 8, -1.0);
  args.sum.scratch = scratch.data();
  rational_quadratic_spline_cuda(args, nullptr);
}
