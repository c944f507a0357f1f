// The affine coupling's kernels: see test_affine_coupling.py.
#include "../../csrc/cuda/affine_coupling.cu"

#include "driver.h"

using namespace gmfast;

namespace {

CouplingOperand operand(Cases& cases) {
  CouplingOperand o;
  o.data = cases.memory();
  if (!o.data) return o;
  o.dtype = DType(cases.integer());
  o.data = static_cast<char*>(o.data) + cases.integer();
  o.batch_stride = cases.integer();
  o.row_stride = cases.integer();
  o.inner_stride = cases.integer();
  return o;
}

}  // namespace

void run_case(Cases& cases) {
  const bool backwards = cases.integer();
  AffineCoupling args{};
  args.batch = cases.integer();
  args.rows = cases.integer();
  args.inner = cases.integer();
  args.kept_rows = cases.integer();
  args.kept_inner = cases.integer();
  args.map = ScaleMap(cases.integer());
  args.shift_first = cases.integer();
  args.inverse = cases.integer();
  args.from_output = cases.integer();
  args.clamp = cases.real();
  args.compute = DType(cases.integer());
  args.x = operand(cases);
  args.kept_x = operand(cases);
  args.shift = operand(cases);
  args.scale = operand(cases);
  args.mask = operand(cases);
  if (!backwards) {
    args.y = operand(cases);
    args.kept_y = operand(cases);
    args.log_det = cases.memory();
    std::vector<double> scratch(args.scratch_bytes() / 8, -1.0);
    args.scratch = scratch.data();
    return affine_coupling_cuda(args, nullptr);
  }
  args.grad_y = operand(cases);
  args.kept_grad_y = operand(cases);
  args.grad_log_det = cases.memory();
  args.grad_log_det_dtype = DType(cases.integer());
  args.grad_log_det_stride = 1;
  args.grad_x = operand(cases);
  args.kept_grad_x = operand(cases);
  args.grad_shift = operand(cases);
  args.grad_scale = operand(cases);
  affine_coupling_backward_cuda(args, nullptr);
}
