// One step of Langevin dynamics, with a fixed or an adaptive step size.
#pragma once

#include "../common/kernel.h"
#include "../common/noise.h"
#include "../common/sample_sum.h"

namespace gmfast {

struct LangevinStep {
  RowShape shape;
  DType compute;
  RowOperand x, score;
  Noise noise;
  PerSample step;  // the step size, or with `adaptive` the signal-to-noise ratio
  bool adaptive;
  double alpha, temperature;
  RowOperand moved, mean;  // mean: data null: not wanted
  // On a GPU, with `adaptive`:
  double* norms;  // sums of squares of the noise (batch), of the score (batch); then the step size
  SampleSum sum;  // over 2 * batch samples
};

// The sums of squares on a GPU: its items are the blocks of drawn noise, or elements.
inline SampleSum langevin_sum(const RowShape& shape, DType compute, bool drawn) {
  const int64_t elements = shape.rows * shape.inner;
  const int64_t tile = 16 * (compute == DType::float64 ? 2 : 4);
  const int64_t items = drawn ? (elements + tile - 1) / tile * 16 : elements;
  return SampleSum(2 * shape.batch, items, drawn ? 8 : 32);
}

GMFAST_KERNEL(langevin_step, LangevinStep);

}  // namespace gmfast
