// What a causal convolution does besides multiplying and adding: the activation silu(z) =
// z·sigmoid(z).
#pragma once

#include "elementary.h"
#include "simd.h"

namespace gmfast {
inline namespace GMFAST_LEVEL {

template <class V>
GMFAST_HD V silu(V z) {
  return z * sigmoid(z);
}

// sigmoid(z) (1 + z (1 - sigmoid(z))), where with t = e^-|z| sigmoid is 1 / (1 + t) or t / (1 + t),
// and their product sigmoid (1 - sigmoid).
template <class V>
GMFAST_HD V silu_derivative(V z) {
  const V one = splat<V>(1);
  const V t = exp_nonpositive(-abs(z));
  const V larger = quotient(one, one + t), smaller = t * larger;
  return fma(z * smaller, larger, select<V>(z < splat<V>(0), smaller, larger));
}

}  // namespace GMFAST_LEVEL
}  // namespace gmfast
