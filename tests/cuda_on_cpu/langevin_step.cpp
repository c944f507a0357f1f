// The kernels of langevin_step: see test_noise.py.
#include "../../csrc/cuda/langevin_step.cu"

#include "noise.h"

using namespace gmfast;

void run_case(Cases& cases) {
  LangevinStep args{};
  args.shape = row_shape(cases);
  args.compute = DType(cases.integer());
  args.adaptive = cases.integer();
  args.alpha = cases.real();
  args.temperature = cases.real();
  args.x = row_operand(cases);
  args.score = row_operand(cases);
  args.noise = noise_of(cases);
  args.step = per_sample(cases);
  args.moved = row_operand(cases);
  args.mean = row_operand(cases);
  args.sum = langevin_sum(args.shape, args.compute, args.noise.drawn());
  const ScratchMemory norms((2 * args.shape.batch + 1) * 8), scratch(args.sum.scratch_bytes());
  args.norms = norms;
  args.sum.scratch = scratch;
  langevin_step_cuda(args, nullptr);
}
