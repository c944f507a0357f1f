// The kernel of q_sample: see test_noise.py.
#include "../../csrc/cuda/q_sample.cu"

#include "noise.h"

using namespace gmfast;

void run_case(Cases& cases) {
  QSample args{};
  args.shape = row_shape(cases);
  args.compute = DType(cases.integer());
  args.target = NoiseTarget(cases.integer());
  args.backward = cases.integer();
  args.x = row_operand(cases);
  args.noise = noise_of(cases);
  args.alpha = per_sample(cases);
  args.sigma = per_sample(cases);
  args.noised = row_operand(cases);
  args.result = row_operand(cases);
  q_sample_cuda(args, nullptr);
}
