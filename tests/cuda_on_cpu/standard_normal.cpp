// The kernel of standard_normal: see test_rows.py.
#include "../../csrc/cuda/standard_normal.cu"

#include "driver.h"

using namespace gmfast;

void run_case(Cases& cases) {
  StandardNormal args{};
  args.batch = cases.integer();
  args.elements = cases.integer();
  args.seed = reinterpret_cast<const int64_t*>(cases.memory());
  args.seed_stride = cases.integer();
  args.own_seeds = args.seed_stride != 0;
  args.out = cases.memory();
  args.dtype = DType(cases.integer());
  standard_normal_cuda(args, nullptr);
}
