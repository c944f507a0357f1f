#pragma once

#include "../common/kernel.h"
#include "../common/noise.h"
#include "../math/q_sample.h"

namespace gmfast {

struct QSample {
  RowShape shape;
  DType compute;
  RowOperand x;
  Noise noise;
  PerSample alpha, sigma;
  NoiseTarget target;
  RowOperand noised, result;  // data null where not wanted
  // Gradients in (of the noised data as x, of the target as noise) and out, instead.
  bool backward;
};

GMFAST_KERNEL(q_sample, QSample);

}  // namespace gmfast
