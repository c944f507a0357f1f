// Samples of a diffusion's forward process, alpha x + sigma z, with the training target.
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
  RowOperand noised, result;  // data null: not wanted
  // x and noise are the gradients of the noised data and of the target; noised and result receive
  // those of x and noise.
  bool backward;
};

GMFAST_KERNEL(q_sample, QSample);

}  // namespace gmfast
