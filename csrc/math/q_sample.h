// A diffusion's forward process, alpha x + sigma z, and the training target.
#pragma once

#include "simd.h"

namespace gmfast {

// The second result: a network's training target.
enum class NoiseTarget { none, epsilon, velocity, flow };

inline namespace GMFAST_LEVEL {

// first = first_x x + first_z z, second = second_x x + second_z z.
template <class S>
struct NoiseWeights {
  S first_x, first_z, second_x, second_z;
};

// alpha x + sigma z; alpha z - sigma x, or z - x.
template <class S>
GMFAST_HD NoiseWeights<S> noise_weights(double alpha, double sigma, NoiseTarget target) {
  const S a = S(alpha), s = S(sigma);
  if (target == NoiseTarget::velocity) return {a, s, -s, a};
  return {a, s, S(-1), S(1)};
}

// The transposed map: from the results' gradients to those of x and z.
template <class S>
GMFAST_HD NoiseWeights<S> transposed(const NoiseWeights<S>& w) {
  return {w.first_x, w.second_x, w.first_z, w.second_z};
}

template <class V>
GMFAST_HD V weighted(Scalar<V> a, V x, Scalar<V> b, V z) {
  return fma(splat<V>(a), x, splat<V>(b) * z);
}

}  // namespace GMFAST_LEVEL
}  // namespace gmfast
