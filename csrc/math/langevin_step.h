// Langevin dynamics: x + step * score + sqrt(2 * temperature * step) * noise.
#pragma once

#include "simd.h"

namespace gmfast {
inline namespace GMFAST_LEVEL {

// Coefficients of the score and of the noise.
template <class S>
struct LangevinWeights {
  S step, spread;
};

template <class S>
GMFAST_HD LangevinWeights<S> langevin_weights(double step, double temperature) {
  return {S(step), S(sqrt(2 * temperature * step))};
}

// The step size for a signal-to-noise ratio, from the mean norms of noise and score (Song et al.,
// 2021, arXiv:2011.13456, algorithms 4 and 5).
GMFAST_HD double adaptive_step(double snr, double alpha, double noise, double score) {
  const double ratio = snr * noise / score;
  return 2 * alpha * ratio * ratio;
}

}  // namespace GMFAST_LEVEL
}  // namespace gmfast
