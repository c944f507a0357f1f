// Standard normal noise by counter.
#pragma once

#include "../common/kernel.h"
#include "../common/noise.h"

namespace gmfast {

struct StandardNormal {
  int64_t batch, elements;  // per sample
  Seeds seeds;
  void* out;  // (batch, elements), contiguous
  DType dtype;
};

GMFAST_KERNEL(standard_normal, StandardNormal);

}  // namespace gmfast
