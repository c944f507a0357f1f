// The kernels of gaussian_log_prob: see test_rows.py.
#include "../../csrc/cuda/gaussian_log_prob.cu"

#include "rows.h"

using namespace gmfast;

namespace {

template <class Args>
void describe(Args& args, Cases& cases) {
  args.shape = row_shape(cases);
  args.compute = DType(cases.integer());
  args.z = row_operand(cases);
  args.mean = row_operand(cases);
  args.log_std = row_operand(cases);
}

void forward(Cases& cases) {
  GaussianLogProb args{};
  describe(args, cases);
  args.log_prob = cases.memory();
  args.elements = args.shape.rows * args.shape.inner;
  args.sum = SampleSum(args.shape.batch, args.elements, 32);
  const ScratchMemory scratch(args.sum.scratch_bytes());
  args.sum.scratch = scratch;
  gaussian_log_prob_cuda(args, nullptr);
}

void backward(Cases& cases) {
  GaussianLogProbBackward args{};
  describe(args, cases);
  args.channels_inner = cases.integer();
  args.grad = cases.memory();
  args.grad_stride = 1;
  args.grad_z = row_operand(cases);
  args.grad_mean = row_operand(cases);
  args.grad_log_std = row_operand(cases);
  args.channel_mean = channels(cases);
  args.channel_log_std = channels(cases);
  args.sum = ChannelSum(args.shape, args.channels_inner);
  const ScratchMemory scratch(args.sum.scratch_bytes());
  args.sum.scratch = scratch;
  gaussian_log_prob_backward_cuda(args, nullptr);
}

}  // namespace

void run_case(Cases& cases) { cases.integer() == 0 ? ::forward(cases) : ::backward(cases); }
