// tanh(a)·sigmoid(b): the gate of the gated PixelCNN and of WaveNet.
#pragma once

#include "elementary.h"
#include "simd.h"

namespace gmfast {
inline namespace GMFAST_LEVEL {

// tanh(a) = e / (e + 2) with e = expm1(2a), and sigmoid(b) = s / (s + 1) with s = exp(b): the two
// share one division. Within the limits the denominators' product is finite; at them both functions
// have reached their ends, to the last bit or, where they tend to 0, to 1e-11.
template <class V>
struct GateParts {
  V e, s;

  GMFAST_HD GateParts(V a, V b) {
    const V lowest = splat<V>(Scalar<V>(is_single<V> ? -80 : -700));
    const ExpReduction<V> by_a =
        reduce_exp(max(lowest, min(splat<V>(Scalar<V>(is_single<V> ? 40 : 350)), a + a)));
    const V scale_a = power_of_two<V>(by_a.n_bits);
    e = fma(scale_a, expm1_of_reduced(by_a.r), scale_a - splat<V>(1));
    const ExpReduction<V> by_b =
        reduce_exp(max(lowest, min(splat<V>(Scalar<V>(is_single<V> ? 25 : 350)), b)));
    s = power_of_two<V>(by_b.n_bits) * exp_of_reduced(by_b.r);
  }
};

template <class V>
GMFAST_HD V gated_activation(V a, V b) {
  const GateParts<V> p(a, b);
  return quotient(p.e * p.s, (p.e + splat<V>(2)) * (p.s + splat<V>(1)));
}

// The derivatives of g·tanh(a)·sigmoid(b).
template <class V>
GMFAST_HD void gated_activation_backward(V g, V a, V b, V& grad_a, V& grad_b) {
  const V one = splat<V>(1);
  const GateParts<V> p(a, b);
  const V e_plus_2 = p.e + splat<V>(2), s_plus_1 = p.s + one;
  const V inverse = quotient(one, e_plus_2 * s_plus_1);
  const V not_sigmoid = inverse * e_plus_2;  // 1 - sigmoid(b)
  const V inverse_a = inverse * s_plus_1;    // 1 / (e + 2)
  const V g_sigmoid = g * (p.s * not_sigmoid);
  // 1 - tanh^2 = 4 (e + 1) / (e + 2)^2
  grad_a = g_sigmoid * (splat<V>(4) * (p.e + one) * (inverse_a * inverse_a));
  grad_b = g_sigmoid * (p.e * inverse_a) * not_sigmoid;
}

}  // namespace GMFAST_LEVEL
}  // namespace gmfast
