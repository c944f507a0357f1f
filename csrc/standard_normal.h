#pragma once

#include "cpu/dispatch.h"
#include "noise.h"

namespace gmfast {

struct StandardNormal {
  int64_t batch, elements;  // of a sample
  Seeds seeds;
  void* out;  // (batch, elements), contiguous
  DType dtype;
};

GMFAST_CPU_KERNEL(standard_normal, StandardNormal);

void standard_normal_cuda(const StandardNormal& args, void* stream);

}  // namespace gmfast
