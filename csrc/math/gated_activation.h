// tanh(a)·sigmoid(b): the gate of the gated PixelCNN and of WaveNet.
#pragma once

#include "elementary.h"
#include "simd.h"

namespace gmfast {
inline namespace GMFAST_LEVEL {

// tanh(a) = -e / (2 + e) with e = expm1(-2a), and sigmoid(b) = 1 / (1 + s) with s = exp(-b): the two
// share one division. Beyond the limits both have reached their ends and s stays finite.
template <class V>
struct GateParts {
  V e, s;

  GMFAST_HD GateParts(V a, V b) {
    const V limit = splat<V>(Scalar<V>(is_single<V> ? 10 : 20)), two = splat<V>(2);
    e = expm1(-two * min(max(a, -limit), limit));
    s = exp(-max(b, splat<V>(Scalar<V>(is_single<V> ? -60 : -700))));
  }
};

template <class V>
GMFAST_HD V gated_activation(V a, V b) {
  const GateParts<V> p(a, b);
  return quotient(-p.e, (p.e + splat<V>(2)) * (p.s + splat<V>(1)));
}

// The derivatives of g·tanh(a)·sigmoid(b).
template <class V>
GMFAST_HD void gated_activation_backward(V g, V a, V b, V& grad_a, V& grad_b) {
  const V one = splat<V>(1), two = splat<V>(2);
  const GateParts<V> p(a, b);
  const V below = p.e + two, under = p.s + one;
  const V inverse = quotient(one, below * under);
  const V sigmoid_b = inverse * below;
  const V sech = inverse * under;  // 1 / (2 + e)
  // 1 - tanh^2 = 4 (1 + e) / (2 + e)^2
  grad_a = g * sigmoid_b * (splat<V>(4) * (one + p.e) * (sech * sech));
  grad_b = g * (-p.e * inverse) * (p.s * sigmoid_b);
}

}  // namespace GMFAST_LEVEL
}  // namespace gmfast
