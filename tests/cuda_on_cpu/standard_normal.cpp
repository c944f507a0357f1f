// The kernel of standard_normal: see test_rows.py.
#include "../../csrc/cuda/standard_normal.cu"

#include "noise.h"

using namespace gmfast;

void run_case(Cases& cases) {
  StandardNormal args{};
  args.batch = cases.integer();
  args.elements = cases.integer();
  args.seeds = seeds(cases);
  args.out = cases.memory();
  args.dtype = DType(cases.integer());
  standard_normal_cuda(args, nullptr);
}
