// The kernels of diffusion_step: see test_diffusion_step.py.
#include "../../csrc/cuda/diffusion_step.cu"

#include "noise.h"

using namespace gmfast;

void run_case(Cases& cases) {
  DiffusionStep args{};
  args.shape = row_shape(cases);
  args.elements = args.shape.rows * args.shape.inner;
  args.compute = DType(cases.integer());
  args.table_rows = cases.integer();
  args.table = reinterpret_cast<const double*>(cases.memory());
  args.table_stride = step_columns;
  args.step = cases.integer();
  args.steps = reinterpret_cast<const int64_t*>(cases.memory());
  args.steps_stride = cases.integer();
  args.draws = cases.integer();
  args.seeds = seeds(cases, cases.integer());
  args.channels = cases.integer();
  args.guidance = cases.real();
  args.rescale = cases.real();
  args.clip = cases.real();
  args.threshold = cases.real();
  args.threshold_max = cases.real();
  args.x = row_operand(cases);
  args.m = row_operand(cases);
  args.unconditional = row_operand(cases);
  args.variance = row_operand(cases);
  args.noise = row_operand(cases);
  for (RowOperand& history : args.history) history = row_operand(cases);
  args.result = row_operand(cases);
  args.x0 = row_operand(cases);
  args.kept = row_operand(cases);
  diffusion_step_cuda(args, nullptr);
}
