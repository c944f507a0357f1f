// The affine coupling of one element: y = x s + t or (x + t) s, s = exp(log_s(a)), and its inverse.
#pragma once

#include "elementary.h"
#include "simd.h"

namespace gmfast {

// Of the raw number a to log s. `none`: s = 1.
enum class ScaleMap { none, exp, sigmoid, tanh, atan, softclip };

inline namespace GMFAST_LEVEL {

// What does not change from element to element. Both directions of both orders are one of two
// forms, with f = s or 1/s and t' = t or -t:
//
//   y = (x + t') f   where the shift is `before` the scale: shift first, or the inverse of the
//   other y = x f + t'     else
template <class V>
struct Coupling {
  V sign, clamp, inverse_clamp;
  bool inverse, before;

  GMFAST_HD Coupling(bool inverse, bool shift_first, double clamp)
      : sign(splat<V>(Scalar<V>(inverse ? -1 : 1))),
        clamp(splat<V>(Scalar<V>(clamp))),
        inverse_clamp(splat<V>(Scalar<V>(1 / clamp))),
        inverse(inverse),
        before(inverse != shift_first) {}
};

template <class V>
struct CouplingScale {
  V log_s;   // of the forward direction
  V factor;  // s, or 1/s for the inverse
  V slope;   // d log_s / da
};

// Finite for every finite a in the bounded maps. The others' factor overflows: exp's where exp(a)
// or exp(-a) does, sigmoid's inverse from a = -90 (double: -710) down.
template <ScaleMap map, class V>
GMFAST_HD CouplingScale<V> coupling_scale(V a, const Coupling<V>& c) {
  using S = Scalar<V>;
  const V one = splat<V>(1);
  if constexpr (map == ScaleMap::none) {
    return {splat<V>(0), one, splat<V>(0)};
  } else if constexpr (map == ScaleMap::exp) {
    return {a, exp(c.sign * a), one};
  } else if constexpr (map == ScaleMap::sigmoid) {
    // With u = exp(-|z|): sigmoid(z) = 1 / (1 + u), below 0 u / (1 + u).
    const V z = a + splat<V>(2);
    const V u = exp_nonpositive(-abs(z));
    const auto negative = z < splat<V>(0);
    const V top = select<V>(negative, u, one), sum = one + u;
    const V log_s = min(splat<V>(0), z) - log1p_unit(u);
    const V slope = quotient(select<V>(negative, one, u), sum);
    return {log_s, c.inverse ? sum / top : quotient(top, sum), slope};
  } else if constexpr (map == ScaleMap::tanh) {
    const V t = tanh(a * c.inverse_clamp);
    const V log_s = c.clamp * t;
    return {log_s, exp(c.sign * log_s), fma(-t, t, one)};
  } else if constexpr (map == ScaleMap::atan) {
    const V scale = c.clamp * splat<V>(S(0.636));
    const V log_s = scale * atan(a);
    return {log_s, exp(c.sign * log_s), scale / fma(a, a, one)};
  } else {
    const V q = one / fma(abs(a), splat<V>(S(0.14476482730108395)), one);  // 1 / |ln 1e-3|
    const V log_s = a * q;
    return {log_s, exp(c.sign * log_s), q * q};
  }
}

template <class V>
GMFAST_HD V coupling(V x, V shift, const CouplingScale<V>& scale, const Coupling<V>& c) {
  const V t = c.sign * shift;
  return c.before ? (x + t) * scale.factor : fma(x, scale.factor, t);
}

// The gradients, of y and of the log-determinant of this direction. Of the element either x is
// known or, `from_output`, y.
template <class V>
GMFAST_HD void coupling_backward(V grad_y, V grad_log_det, V known, bool from_output, V shift,
                                 const CouplingScale<V>& scale, const Coupling<V>& c, V& grad_x,
                                 V& grad_shift, V& grad_scale) {
  // dy/dlog_s is what the scale multiplies, times it: the gradient meets the scale first, and where
  // the slope is 0 then meets no infinity.
  const V t = c.sign * shift;
  const V multiplied =
      from_output ? (c.before ? known : known - t) : (c.before ? known + t : known);
  grad_x = grad_y * scale.factor;
  grad_shift = c.sign * (c.before ? grad_x : grad_y);
  const V weight = (from_output ? grad_y : grad_x) * scale.slope;
  grad_scale = c.sign * fma(weight, multiplied, grad_log_det * scale.slope);
}

}  // namespace GMFAST_LEVEL
}  // namespace gmfast
