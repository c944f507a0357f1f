// The log-density of a normal distribution, but for its constant.
#pragma once

#include "elementary.h"
#include "simd.h"

namespace gmfast {
inline namespace GMFAST_LEVEL {

// -log(2 pi)/2, of every element.
constexpr double gaussian_constant = -0.91893853320467274178;

// e = (z - mean) / std from inverse_std = exp(-log_std).
template <class V>
GMFAST_HD V gaussian_log_prob(V z, V mean, V log_std, V inverse_std) {
  const V e = (z - mean) * inverse_std;
  return fma(splat<V>(Scalar<V>(-0.5)) * e, e, -log_std);
}

// The derivatives of grad times that.
template <class V>
GMFAST_HD void gaussian_log_prob_backward(V grad, V z, V mean, V inverse_std, V& grad_z,
                                          V& grad_mean, V& grad_log_std) {
  const V e = (z - mean) * inverse_std;
  grad_mean = grad * (e * inverse_std);
  grad_z = -grad_mean;
  grad_log_std = grad * fma(e, e, splat<V>(-1));
}

}  // namespace GMFAST_LEVEL
}  // namespace gmfast
