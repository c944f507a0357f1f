// From a level and its noise to a logit: p = alpha + (1 - 2 alpha) (x + u) / num_levels, and
// y = log p - log(1 - p).
#pragma once

#include "elementary.h"
#include "simd.h"

namespace gmfast {
inline namespace GMFAST_LEVEL {

// Drawn noise keeps this distance from 0 and 1, so that the level can be told from the rounded
// logit again: its error, in levels, is below num_levels epsilon.
template <class V>
GMFAST_HD double level_margin(double num_levels) {
  const double margin = num_levels * (is_single<V> ? 0x1p-21 : 0x1p-50);
  return margin < 0.25 ? margin : 0.25;
}

template <class V>
struct LevelLogit {
  using S = Scalar<V>;

  V alpha, inverse_alpha;  // and 1 / (1 - 2 alpha)
  V step, levels;          // (1 - 2 alpha) / num_levels, num_levels
  V margin;                // see level_margin

  GMFAST_HD LevelLogit(double alpha, double num_levels)
      : alpha(splat<V>(S(alpha))),
        inverse_alpha(splat<V>(S(1 / (1 - 2 * alpha)))),
        step(splat<V>(S((1 - 2 * alpha) / num_levels))),
        levels(splat<V>(S(num_levels))),
        margin(splat<V>(S(level_margin<V>(num_levels)))) {}

  // Drawn noise as it is used.
  GMFAST_HD V drawn(V u) const { return min(splat<V>(1) - margin, max(margin, u)); }

  // p and 1 - p, which is not taken from p: near 1 that has lost it. The smaller of the two is
  // never 0.
  GMFAST_HD void probabilities(V x, V u, V& p, V& q) const {
    const V one = splat<V>(1), least = splat<V>(Format<V>::smallest_normal);
    p = max(least, fma(step, x + u, alpha));
    q = max(least, fma(step, (levels - one - x) + (one - u), alpha));
  }

  // The logit; log_det is without its constant.
  GMFAST_HD V forward(V x, V u, V& log_det) const {
    V p, q;
    probabilities(x, u, p, q);
    const V log_p = log_positive(p), log_q = log_positive(q);
    log_det = -log_p - log_q;
    return log_p - log_q;
  }

  // The gradient by x, which is that by u.
  GMFAST_HD V backward(V grad_y, V grad_log_det, V x, V u) const {
    V p, q;
    probabilities(x, u, p, q);
    const V by_p = splat<V>(1) / p, by_q = splat<V>(1) / q;
    return step * fma(grad_y, by_p + by_q, grad_log_det * (by_q - by_p));
  }

  // x + u of a logit; log_det is without its constant.
  GMFAST_HD V inverse(V y, V& log_det) const {
    const V one = splat<V>(1);
    const V t = exp_nonpositive(-abs(y));
    const V log1p = log1p_unit(t);
    log_det = -abs(y) - (log1p + log1p);
    const V p = quotient(select<V>(y < splat<V>(0), t, one), one + t);
    return (p - alpha) * inverse_alpha * levels;
  }
  GMFAST_HD V quantize(V value) const {
    return min(levels - splat<V>(1), max(splat<V>(0), floor(value)));
  }

  // grad_value is 0 where the value was quantized.
  GMFAST_HD V inverse_backward(V grad_value, V grad_log_det, V y) const {
    const V one = splat<V>(1);
    const V t = exp_nonpositive(-abs(y)), r = quotient(one, one + t);
    const V slope = t * r * r;                        // sigmoid(y) sigmoid(-y)
    const V log_slope = copysign((one - t) * r, -y);  // sigmoid(-y) - sigmoid(y)
    return fma(grad_value * (inverse_alpha * levels), slope, grad_log_det * log_slope);
  }
};

}  // namespace GMFAST_LEVEL
}  // namespace gmfast
