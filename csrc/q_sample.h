#pragma once

#include "cpu/dispatch.h"
#include "noise.h"

namespace gmfast {

// What the second result is.
enum class NoiseTarget { none, epsilon, velocity, flow };

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

GMFAST_CPU_KERNEL(q_sample, QSample);

void q_sample_cuda(const QSample& args, void* stream);

}  // namespace gmfast
