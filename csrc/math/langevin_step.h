// A step of Langevin dynamics: along the score, and noise.
#pragma once

#include "simd.h"

namespace gmfast {
inline namespace GMFAST_LEVEL {

// Factors of the score and of the noise.
template <class S>
struct LangevinWeights {
  S step, spread;
};

template <class S>
GMFAST_HD LangevinWeights<S> langevin_weights(double step, double temperature) {
  return {S(step), S(sqrt(2 * temperature * step))};
}

// The step of which the noise is `snr` times the signal, from mean norms of noise and score.
GMFAST_HD double adaptive_step(double snr, double alpha, double noise, double score) {
  const double ratio = snr * noise / score;
  return 2 * alpha * ratio * ratio;
}

}  // namespace GMFAST_LEVEL
}  // namespace gmfast
