// Concatenated exponential linear units (Shang et al., 2016; Salimans et al., 2017).
#pragma once

#include "elementary.h"
#include "simd.h"

namespace gmfast {
inline namespace GMFAST_LEVEL {

// elu(x) and elu(-x). One of the two is |x|, the other e^-|x| - 1.
template <class V>
GMFAST_HD void concat_elu(V x, V& positive, V& negative) {
  const V magnitude = abs(x), saturating = expm1(-magnitude);
  const auto below = x < splat<V>(0);
  positive = select<V>(below, saturating, x);
  negative = select<V>(below, magnitude, saturating);
}

// The derivative of g·elu(x) + h·elu(-x) by x.
template <class V>
GMFAST_HD V concat_elu_backward(V g, V h, V x) {
  const V slope = exp(-abs(x));
  return select<V>(x > splat<V>(0), fma(-h, slope, g), fma(g, slope, -h));
}

}  // namespace GMFAST_LEVEL
}  // namespace gmfast
