// The kernels of actnorm: see test_rows.py.
#include "../../csrc/cuda/actnorm.cu"

#include "rows.h"

using namespace gmfast;

void run_case(Cases& cases) {
  if (cases.integer() == 0) {
    ActNorm args{};
    args.channels_inner = cases.integer();
    args.shape = row_shape(cases);
    args.inverse = cases.integer();
    args.compute = DType(cases.integer());
    args.batch = args.shape.batch;
    args.channels = args.channels_inner ? args.shape.inner : args.shape.rows;
    args.pixels = args.channels_inner ? args.shape.rows : args.shape.inner;
    args.x = row_operand(cases);
    args.y = row_operand(cases);
    args.shift = channels(cases);
    args.log_scale = channels(cases);
    args.log_det = cases.memory();
    actnorm_cuda(args, nullptr);
    return;
  }
  ActNormBackward args{};
  args.channels_inner = cases.integer();
  args.shape = row_shape(cases);
  args.inverse = cases.integer();
  args.compute = DType(cases.integer());
  args.batch = args.shape.batch;
  args.channels = args.channels_inner ? args.shape.inner : args.shape.rows;
  args.pixels = args.channels_inner ? args.shape.rows : args.shape.inner;
  args.grad_y = row_operand(cases);
  args.x = row_operand(cases);
  args.shift = channels(cases);
  args.log_scale = channels(cases);
  args.grad_log_det = cases.memory();
  args.grad_log_det_stride = 1;
  args.grad_x = row_operand(cases);
  args.grad_shift = channels(cases);
  args.grad_log_scale = channels(cases);
  args.sum = ChannelSum(args.shape, args.channels_inner);
  args.sum.scratch = reinterpret_cast<double*>(std::malloc(args.sum.scratch_bytes()));
  actnorm_backward_cuda(args, nullptr);
  std::free(args.sum.scratch);
}
