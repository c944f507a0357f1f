// The kernels of diffusion_hybrid_loss: see test_rows.py.
#include "../../csrc/cuda/diffusion_hybrid_loss.cu"

#include "rows.h"

using namespace gmfast;

namespace {

void describe(DiffusionHybridLossInputs& in, Cases& cases) {
  in.shape = row_shape(cases);
  in.elements = in.shape.rows * in.shape.inner;
  in.compute = DType(cases.integer());
  in.num_classes = 256;
  in.exact = cases.integer();
  in.epsilon = row_operand(cases);
  in.v = row_operand(cases);
  in.x0 = row_operand(cases);
  in.x_t = row_operand(cases);
  in.noise = row_operand(cases);
  in.steps = cases.integer();
  in.row_stride = 20;
  in.column_stride = 1;
  in.table = reinterpret_cast<const double*>(cases.memory());
  in.timestep = reinterpret_cast<const int64_t*>(cases.memory());
  in.timestep_stride = 1;
}

void forward(Cases& cases) {
  DiffusionHybridLoss args{};
  describe(args.in, cases);
  args.simple = cases.memory();
  args.bound = cases.memory();
  args.sum = SampleSum(args.in.shape.batch, args.in.elements, 8, 2);
  const ScratchMemory scratch(args.sum.scratch_bytes());
  args.sum.scratch = scratch;
  diffusion_hybrid_loss_cuda(args, nullptr);
}

void backward(Cases& cases) {
  DiffusionHybridLossBackward args{};
  describe(args.in, cases);
  args.grad_simple = cases.memory();
  args.grad_bound = cases.memory();
  args.grad_simple_stride = args.grad_bound_stride = 1;
  args.grad_epsilon = row_operand(cases);
  args.grad_v = row_operand(cases);
  diffusion_hybrid_loss_backward_cuda(args, nullptr);
}

}  // namespace

void run_case(Cases& cases) { cases.integer() == 0 ? ::forward(cases) : ::backward(cases); }
