#pragma once

#include "cpu/dispatch.h"
#include "tensor.h"

namespace gmfast {

struct StandardNormal {
  int64_t batch, elements;  // of a sample
  const int64_t* seed;      // on the device of out
  int64_t seed_stride;      // of seeds that samples have of their own: each is sample 0 of its seed
  bool own_seeds;
  void* out;  // (batch, elements), contiguous
  DType dtype;
};

GMFAST_CPU_KERNEL(standard_normal, StandardNormal);

void standard_normal_cuda(const StandardNormal& args, void* stream);

}  // namespace gmfast
