#pragma once

#include "../common/kernel.h"
#include "../common/noise.h"

namespace gmfast {

struct StandardNormal {
  int64_t batch, elements;  // of a sample
  Seeds seeds;
  void* out;  // (batch, elements), contiguous
  DType dtype;
};

GMFAST_KERNEL(standard_normal, StandardNormal);

}  // namespace gmfast
