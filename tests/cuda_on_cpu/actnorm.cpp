// The kernels of actnorm: see test_rows.py.
#include "../../csrc/cuda/actnorm.cu"

#include "rows.h"

using namespace gmfast;

namespace {

template <class Args>
void describe(Args& args, Cases& cases) {
  args.channels_inner = cases.integer();
  args.shape = row_shape(cases);
  args.batch = args.shape.batch;
  args.channels = args.channels_inner ? args.shape.inner : args.shape.rows;
  args.pixels = args.channels_inner ? args.shape.rows : args.shape.inner;
  args.inverse = cases.integer();
  args.compute = DType(cases.integer());
  args.x = row_operand(cases);
  args.shift = channels(cases);
  args.log_scale = channels(cases);
}

void forward(Cases& cases) {
  ActNorm args{};
  describe(args, cases);
  args.y = row_operand(cases);
  args.log_det = cases.memory();
  actnorm_cuda(args, nullptr);
}

void backward(Cases& cases) {
  ActNormBackward args{};
  describe(args, cases);
  args.grad_y = row_operand(cases);
  args.grad_log_det = cases.memory();
  args.grad_log_det_stride = 1;
  args.grad_x = row_operand(cases);
  args.grad_shift = channels(cases);
  args.grad_log_scale = channels(cases);
  args.sum = ChannelSum(args.shape, args.channels_inner);
  const ScratchMemory scratch(args.sum.scratch_bytes());
  args.sum.scratch = scratch;
  actnorm_backward_cuda(args, nullptr);
}

}  // namespace

void run_case(Cases& cases) { cases.integer() == 0 ? ::forward(cases) : ::backward(cases); }
