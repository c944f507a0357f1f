// The affine coupling's kernels: see test_affine_coupling.py.
#include "../../csrc/cuda/affine_coupling.cu"

#include "rows.h"

using namespace gmfast;

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
  args.x = row_operand(cases);
  args.kept_x = row_operand(cases);
  args.shift = row_operand(cases);
  args.scale = row_operand(cases);
  args.mask = row_operand(cases);
  if (!backwards) {
    args.y = row_operand(cases);
    args.kept_y = row_operand(cases);
    args.log_det = cases.memory();
    std::vector<double> scratch(args.scratch_bytes() / 8, -1.0);
    args.scratch = scratch.data();
    return affine_coupling_cuda(args, nullptr);
  }
  args.grad_y = row_operand(cases);
  args.kept_grad_y = row_operand(cases);
  args.grad_log_det = cases.memory();
  args.grad_log_det_dtype = DType(cases.integer());
  args.grad_log_det_stride = 1;
  args.grad_x = row_operand(cases);
  args.kept_grad_x = row_operand(cases);
  args.grad_shift = row_operand(cases);
  args.grad_scale = row_operand(cases);
  affine_coupling_backward_cuda(args, nullptr);
}
