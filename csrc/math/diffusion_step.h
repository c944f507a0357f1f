// One step of a linear sampler: m is guided, x0 predicted of it and limited, and the results are
// sums of what there is times a row of a table.
#pragma once

#include "elementary.h"
#include "simd.h"

namespace gmfast {
inline namespace GMFAST_LEVEL {

template <class V>
GMFAST_HD V guided(V m, V unconditional, V guidance) {
  return fma(guidance, m - unconditional, unconditional);
}

template <class V>
GMFAST_HD V predicted(V x, V m, V by_x, V by_m) {
  return fma(by_m, m, by_x * x);
}

// Beside numbers, infinity and NaN are left as they are where the limit is infinite.
template <class V>
GMFAST_HD V clamp_to(V x, V limit) {
  x = select<V>(x > limit, limit, x);
  return select<V>(x < -limit, -limit, x);
}

// What the coefficient of the noise is multiplied by where the variance's range was learned.
template <class V>
GMFAST_HD V noise_spread(V variance, V low, V high) {
  const V quarter = splat<V>(Scalar<V>(0.25));
  return exp(quarter * fma(high - low, variance, high + low));
}

// The factor of the guided output that rescales a share of it to another deviation. Of outputs that
// are constant there is none.
GMFAST_HD double rescaling(double share, double variance, double guided_variance) {
  if (!(guided_variance > 0)) return 1;
  return share * sqrt(variance / guided_variance) + (1 - share);
}

// Where in n sorted numbers a quantile lies: between `rank` and the next.
struct QuantilePlace {
  int64_t rank;
  double weight;  // of the next

  GMFAST_HD QuantilePlace(double quantile, int64_t n) {
    const double place = quantile * double(n - 1);
    rank = int64_t(place);
    if (rank > n - 1) rank = n - 1;
    weight = place - double(rank);
  }
  GMFAST_HD double between(double low, double high) const {
    return weight > 0 ? low + weight * (high - low) : low;
  }
};

GMFAST_HD double threshold_limit(double quantile, double largest) {
  const double limit = quantile < 1 ? 1 : quantile;
  return limit > largest ? largest : limit;
}

}  // namespace GMFAST_LEVEL
}  // namespace gmfast
