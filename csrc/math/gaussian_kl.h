// The divergence of two normal distributions, KL(N(mean1, exp(logvar1)) || N(mean2, exp(logvar2))).
#pragma once

#include "elementary.h"
#include "simd.h"

namespace gmfast {
inline namespace GMFAST_LEVEL {

// e^x - 1 - x within 8 ulp, also near 0, where its terms cancel. Infinite above the range.
template <class V>
GMFAST_HD V exp_remainder(V x) {
  using S = Scalar<V>;
  const V lowest = splat<V>(Format<V>::log_smallest_normal);
  x = min(splat<V>(Format<V>::log_largest + S(0.25)), x);
  const ExpReduction<V> reduced = reduce_exp(max(lowest, x));
  const V tail = expm1_tail(reduced.r), square = reduced.r * reduced.r;
  // Half the scale and twice the result, because 2^128 is not a float.
  const V half = splat<V>(S(0.5)), half_scale = power_of_two<V>(reduced.n_bits - 1u);
  const V half_y = fma(half_scale, fma(square, tail, reduced.r), (half_scale - half) - half * x);
  return select<V>(reduced.n == splat<V>(0), square * tail, half_y + half_y);
}

// 1/std from the log-variance. One so small that this is no number counts as the smallest.
template <class V>
GMFAST_HD V inverse_std(V logvar) {
  return exp(min(splat<V>(Format<V>::log_largest - 1), splat<V>(Scalar<V>(-0.5)) * logvar));
}

// From the difference of the means in units of std2, and of the log-variances, logvar1 - logvar2.
template <class V>
GMFAST_HD V gaussian_kl(V e, V log_ratio) {
  return splat<V>(Scalar<V>(0.5)) * fma(e, e, exp_remainder(log_ratio));
}
// By logvar1, and by logvar2.
template <class V>
GMFAST_HD void gaussian_kl_by_logvar(V e, V log_ratio, V& by_logvar1, V& by_logvar2) {
  const V half = splat<V>(Scalar<V>(0.5));
  const V ratio = expm1(log_ratio);
  by_logvar1 = half * ratio;
  by_logvar2 = -half * fma(e, e, ratio);
}

// The derivatives of grad times that, from inverse_std(logvar2); by mean2 it is minus that by
// mean1.
template <class V>
GMFAST_HD void gaussian_kl_backward(V grad, V mean1, V logvar1, V mean2, V logvar2, V inverse,
                                    V& by_mean1, V& by_logvar1, V& by_logvar2) {
  const V e = (mean1 - mean2) * inverse;
  gaussian_kl_by_logvar(e, logvar1 - logvar2, by_logvar1, by_logvar2);
  by_mean1 = grad * (e * inverse);
  by_logvar1 *= grad;
  by_logvar2 *= grad;
}

}  // namespace GMFAST_LEVEL
}  // namespace gmfast
