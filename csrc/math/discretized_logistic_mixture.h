// Mixture of discretized logistics (Salimans et al., 2017, arXiv:1701.05517): one pixel under one
// component. Kernels loop over components and combine them by log-sum-exp.
#pragma once

#include "elementary.h"
#include "simd.h"

namespace gmfast {
inline namespace GMFAST_LEVEL {

// A pixel has `num_classes` values in [-1, 1], spaced 2 delta apart.
template <class V>
struct Classes {
  V delta, log_width, lowest, highest, log_scale_min, count;

  GMFAST_HD Classes(int num_classes, double min)
      : delta(splat<V>(Scalar<V>(1.0 / (num_classes - 1)))),
        log_width(splat<V>(Scalar<V>(-__builtin_log((num_classes - 1) / 2.0)))),
        lowest(splat<V>(Scalar<V>(-1.0 + 1.0 / (num_classes - 1)))),
        highest(splat<V>(Scalar<V>(1.0 - 1.0 / (num_classes - 1)))),
        log_scale_min(splat<V>(Scalar<V>(min))),
        count(splat<V>(Scalar<V>(num_classes - 1))) {}
};

// The parameters of one component: raw, but for the colours' weights, which are the tanh of the raw
// coefficients. One channel has none.
template <class V, int C>
struct LogisticComponent {
  V mean[C], log_scale[C], weight[C];
};

// Derivatives of its log-probability.
template <class V, int C>
struct LogisticGradient {
  V mean[C], log_scale[C], coeff[C], x[C];
};

// A probability e^exponent·factor. For log-scales of -20 and more, a channel's factor is within
// [1e-10, 1]: a product over channels, or a sum over components of factors weighted by e^(exponent
// - the largest exponent), neither overflows nor loses what matters, and takes one logarithm in the
// end.
template <class V>
struct Probability {
  V exponent, factor;
};

// The mass of one channel's bin, and the derivatives of its logarithm.
template <class V>
struct LogisticBin {
  Probability<V> mass;
  V d_mean, d_log_scale;
};

// The exact mass of the bin around x. Standardised, x is z from the mean and the bin reaches `half`
// to either side; so its edges are half - |z| and half + |z| away:
//   log mass = log sigmoid(half - |z|) + log sigmoid(half + |z|) + log(1 - e^(-2 half)),
// and an outermost class has but one of the two edges. Nothing is subtracted that could cancel.
//   sigmoid(half - |z|) = 1 / (1 + near), or near / (1 + near) outside the bin,
//   sigmoid(half + |z|) = 1 / (1 + far),
// where near = exp(-|half - |z||), and far, exp(-half - |z|), is near times exp(-2 half) outside
// the bin and exp(-2 half) over near inside. `edges` says whether x may be of an outermost class;
// the result is the same to the bit.
template <bool edges, bool gradient, class V>
GMFAST_HD LogisticBin<V> exact_bin(V x, V mean, V log_scale, const Classes<V>& classes) {
  const V zero = splat<V>(0), one = splat<V>(1);
  const V s = max(classes.log_scale_min, log_scale);
  const V inv_scale = exp(-s);
  const V half = classes.delta * inv_scale;
  const V z = (x - mean) * inv_scale;
  const V distance = abs(z) - half;  // from the nearer edge, negative inside
  // Below 1e-15, (1 - e^-h) / h is 1; above, its square does not underflow.
  const V h = max(splat<V>(Scalar<V>(1e-15)), half + half);
  V e, e_minus_1;
  exp_expm1_nonpositive(-h, &e, &e_minus_1);
  // 60 from an edge near is negligible beside 1, but still divides e.
  const V near = exp_nonpositive(max(splat<V>(-60), -abs(distance)));

  const auto inside = distance < zero;
  V near_exponent = -max(zero, distance);
  V near_edge = one + near;
  // 1 + far = far_edge / far_unit.
  V far_edge = select<V>(inside, near + e, fma(e, near, one));
  V far_unit = select<V>(inside, near, one);
  V near_weight = far_unit, far_weight = select<V>(inside, e, e * near);
  // log(1 - e^-h) = log h + log((1 - e^-h) / h), and log h = log(2 delta) - s.
  V log_width = classes.log_width - s;
  V width = h, mass = -e_minus_1, d_h = h * e;
  if constexpr (edges) {
    const auto negative = z < zero;
    const auto below = x < classes.lowest;   // reaches to minus infinity
    const auto above = x > classes.highest;  // reaches to infinity
    const auto outer = mask_or(below, above);
    const auto near_only = mask_or(mask_and(below, negative), mask_and(above, mask_not(negative)));
    const auto far_only = mask_and(outer, mask_not(near_only));
    near_exponent = select<V>(far_only, zero, near_exponent);
    near_edge = select<V>(far_only, one, near_edge);
    near_weight = select<V>(far_only, zero, near_weight);
    far_edge = select<V>(near_only, one, far_edge);
    far_unit = select<V>(near_only, one, far_unit);
    far_weight = select<V>(near_only, zero, far_weight);
    log_width = select<V>(outer, zero, log_width);
    width = select<V>(outer, one, width);
    mass = select<V>(outer, one, mass);
    d_h = select<V>(outer, zero, d_h);
  }

  LogisticBin<V> bin;
  bin.mass.exponent = log_width + near_exponent;
  const V both_edges = near_edge * far_edge;
  if constexpr (!gradient) {
    bin.mass.factor = quotient(mass * far_unit, width * both_edges);
  } else {
    // One division serves the four quotients.
    const V inverse = quotient(one, width * mass * both_edges);
    const V inverse_edges = inverse * (width * mass);
    bin.mass.factor = inverse * (mass * mass) * far_unit;
    // d log sigmoid(half - |z|) / d(half - |z|) and the same of half + |z|.
    const V d_near = near_weight * (inverse_edges * far_edge);
    const V d_far = far_weight * (inverse_edges * near_edge);
    const V d_distance = d_far - d_near;  // by |z|
    bin.d_mean = -copysign(inv_scale, z) * d_distance;
    d_h *= inverse * both_edges * width;
    bin.d_log_scale = select<V>(log_scale < classes.log_scale_min, zero,
                                -fma(abs(z), d_distance, fma(half, d_near + d_far, d_h)));
  }
  return bin;
}

// The published approximation: a difference of sigmoids, replaced by the density at the bin's
// centre where it is below 1e-5; the outermost classes are told by |x| > 0.999.
template <bool gradient, class V>
GMFAST_HD LogisticBin<V> pixelcnnpp_bin(V x, V mean, V log_scale, const Classes<V>& classes) {
  const V zero = splat<V>(0), one = splat<V>(1);
  const V s = max(classes.log_scale_min, log_scale);
  const V inv_scale = exp(-s);
  const V z = (x - mean) * inv_scale;
  const V a = (x - mean + classes.delta) * inv_scale;
  const V b = (x - mean - classes.delta) * inv_scale;
  const V cdf_a = sigmoid(a), cdf_b = sigmoid(b);
  const V mass = cdf_a - cdf_b;

  const auto below = x < splat<V>(Scalar<V>(-0.999));
  const auto above = x > splat<V>(Scalar<V>(0.999));
  const auto wide = mass > splat<V>(Scalar<V>(1e-5));

  LogisticBin<V> bin;
  bin.mass.exponent = select<V>(
      below, log_sigmoid(a),
      select<V>(above, log_sigmoid(-b),
                select<V>(wide, zero, log_sigmoid(z) + log_sigmoid(-z) - s + classes.log_width)));
  bin.mass.factor = select<V>(mask_or(mask_or(below, above), mask_not(wide)), one, mass);
  if constexpr (gradient) {
    // Off by what the cdf is off, as the mass is, so that it cancels in their quotient.
    const V density_a = cdf_a * (one - cdf_a), density_b = cdf_b * (one - cdf_b);
    const V inverse = one / select<V>(wide, mass, one);
    const V cdf_z = sigmoid(z);
    // d/dz of the three forms, then of the mass.
    const V d_centre = one - cdf_z - cdf_z;
    const V d_mass = (density_a - density_b) * inverse;
    const V d =
        select<V>(below, sigmoid(-a), select<V>(above, -cdf_b, select<V>(wide, d_mass, d_centre)));
    const V d_scale = select<V>(
        below, -a * sigmoid(-a),
        select<V>(above, b * cdf_b,
                  select<V>(wide, (b * density_b - a * density_a) * inverse, -z * d_centre - one)));
    bin.d_mean = -inv_scale * d;
    bin.d_log_scale = select<V>(log_scale < classes.log_scale_min, zero, d_scale);
  }
  return bin;
}

// p(x | component), all C colours; green's mean depends on red, blue's on both.
enum class Bin { exact, exact_within, pixelcnnpp };  // exact_within: no x of an outermost class

template <Bin bin_form, bool gradient, class V, int C>
GMFAST_HD Probability<V> component_probability(const V (&x)[C],
                                               const LogisticComponent<V, C>& component,
                                               const Classes<V>& classes,
                                               LogisticGradient<V, C>& grad) {
  V mean[C];
  const V(&weight)[C] = component.weight;
  mean[0] = component.mean[0];
  if constexpr (C == 3) {
    mean[1] = fma(weight[0], x[0], component.mean[1]);
    mean[2] = fma(weight[2], x[1], fma(weight[1], x[0], component.mean[2]));
  }

  Probability<V> probability{splat<V>(0), splat<V>(1)};
  GMFAST_UNROLL
  for (int c = 0; c < C; ++c) {
    LogisticBin<V> bin;
    if constexpr (bin_form == Bin::pixelcnnpp) {
      bin = pixelcnnpp_bin<gradient>(x[c], mean[c], component.log_scale[c], classes);
    } else {
      bin = exact_bin<bin_form == Bin::exact, gradient>(x[c], mean[c], component.log_scale[c],
                                                        classes);
    }
    probability.exponent += bin.mass.exponent;
    probability.factor *= bin.mass.factor;
    if constexpr (gradient) {
      grad.mean[c] = bin.d_mean;
      grad.log_scale[c] = bin.d_log_scale;
      grad.x[c] = -bin.d_mean;
    }
  }
  if constexpr (gradient && C == 3) {
    const V one = splat<V>(1);
    grad.x[0] += grad.mean[1] * weight[0] + grad.mean[2] * weight[1];
    grad.x[1] += grad.mean[2] * weight[2];
    grad.coeff[0] = grad.mean[1] * x[0] * (one - weight[0] * weight[0]);
    grad.coeff[1] = grad.mean[2] * x[0] * (one - weight[1] * weight[1]);
    grad.coeff[2] = grad.mean[2] * x[1] * (one - weight[2] * weight[2]);
  }
  return probability;
}

// Draws the colours of a pixel from one component, each clamped and rounded before the next uses
// it. `uniform` in the open interval (0, 1).
template <class V, int C>
GMFAST_HD void sample_component(const LogisticComponent<V, C>& component, const V (&uniform)[C],
                                V temperature, bool quantize, const Classes<V>& classes,
                                V (&x)[C]) {
  const V one = splat<V>(1);
  GMFAST_UNROLL
  for (int c = 0; c < C; ++c) {
    V mean = component.mean[c];
    if (c == 1) mean = fma(component.weight[0], x[0], mean);
    if (c == 2) {
      mean = fma(component.weight[1], x[0], mean);
      mean = fma(component.weight[2], x[1], mean);
    }
    const V noise = temperature * (log(uniform[c]) - log1p(-uniform[c]));
    // A scale of e^80 is as good as any beyond, and times no noise it is 0.
    const V log_scale = min(splat<V>(80), max(classes.log_scale_min, component.log_scale[c]));
    V value = fma(exp(log_scale), noise, mean);
    value = min(one, max(-one, value));
    if (quantize) {
      const V index = round((value + one) * (classes.count * splat<V>(Scalar<V>(0.5))));
      value = min(one, index * (classes.delta + classes.delta) - one);
    }
    x[c] = value;
  }
}

}  // namespace GMFAST_LEVEL
}  // namespace gmfast
