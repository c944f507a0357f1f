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

// The raw parameters of one component; coeff is unused for one channel.
template <class V, int C>
struct LogisticComponent {
  V mean[C], log_scale[C], coeff[C];
};

// Derivatives of its log-probability.
template <class V, int C>
struct LogisticGradient {
  V mean[C], log_scale[C], coeff[C], x[C];
};

// What one channel adds to the log-probability: linear + log(factor). The factor, within
// [1e-10, 1] for log-scales of -20 and more, is kept apart so that channels share one logarithm.
template <class V>
struct LogisticBin {
  V linear, factor;
  V d_mean, d_log_scale;
};

// The exact mass of the bin around x. With a, b the standardised upper and lower edge and h = a - b:
//   lowest class log s(a), highest log s(-b), between log s(a) + log s(-b) + log(1 - e^-h),
// s the sigmoid. Nothing is subtracted that could cancel.
template <bool gradient, class V>
GMFAST_HD LogisticBin<V> exact_bin(V x, V mean, V log_scale, const Classes<V>& classes) {
  const V zero = splat<V>(0), one = splat<V>(1);
  const V s = max(log_scale, classes.log_scale_min);
  const V inv_scale = exp(-s);
  const V half = classes.delta * inv_scale;
  const V a = fma(x - mean, inv_scale, half);
  const V b = fma(x - mean, inv_scale, -half);
  // Below 1e-15, (1 - e^-h) / h is 1; above, its square does not underflow.
  const V h = max(half + half, splat<V>(Scalar<V>(1e-15)));
  const V u = exp_nonpositive(-abs(a));
  const V v = exp_nonpositive(-abs(b));
  V e, e_minus_1;
  exp_expm1_nonpositive(-h, &e, &e_minus_1);

  const auto below = x < classes.lowest;   // reaches to minus infinity: no lower edge
  const auto above = x > classes.highest;  // no upper edge
  const auto outer = mask_or(below, above);

  // log(1 - e^-h) = log h + log((1 - e^-h) / h), and log h = log(2 delta) - s.
  LogisticBin<V> bin;
  bin.linear = select<V>(above, zero, min(a, zero)) - select<V>(below, zero, max(b, zero)) +
               select<V>(outer, zero, classes.log_width - s);
  const V upper = select<V>(above, one, one + u);
  const V lower = select<V>(below, one, one + v);
  const V width = select<V>(outer, one, h);
  const V mass = select<V>(outer, one, -e_minus_1);  // 1 - e^-h
  if constexpr (!gradient) {
    bin.factor = quotient(mass, width * (upper * lower));
  } else {
    // One division serves the four quotients.
    const V inverse = quotient(one, width * mass * (upper * lower));
    const V inverse_edges = inverse * (width * mass);
    bin.factor = inverse * (mass * mass);
    const V d_a = select<V>(above, zero, select<V>(a < zero, one, u) * (inverse_edges * lower));
    const V d_b = select<V>(below, zero, select<V>(b < zero, v, one) * (inverse_edges * upper));
    const V d_h = select<V>(outer, zero, h * e * (inverse * (upper * lower) * width));
    bin.d_mean = inv_scale * (d_b - d_a);
    bin.d_log_scale = select<V>(log_scale < classes.log_scale_min, zero, b * d_b - a * d_a - d_h);
  }
  return bin;
}

// The published approximation: a difference of sigmoids, replaced by the density at the bin's centre
// where it is below 1e-5; the outermost classes are told by |x| > 0.999.
template <bool gradient, class V>
GMFAST_HD LogisticBin<V> pixelcnnpp_bin(V x, V mean, V log_scale, const Classes<V>& classes) {
  const V zero = splat<V>(0), one = splat<V>(1);
  const V s = max(log_scale, classes.log_scale_min);
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
  bin.linear = select<V>(
      below, log_sigmoid(a),
      select<V>(above, log_sigmoid(-b),
                select<V>(wide, zero, log_sigmoid(z) + log_sigmoid(-z) - s + classes.log_width)));
  bin.factor = select<V>(mask_or(mask_or(below, above), mask_not(wide)), one, mass);
  if constexpr (gradient) {
    const V density_a = cdf_a * sigmoid(-a), density_b = cdf_b * sigmoid(-b);
    const V inverse = one / select<V>(wide, mass, one);
    const V cdf_z = sigmoid(z);
    // d/dz of the three forms, then of the mass.
    const V d_centre = one - cdf_z - cdf_z;
    const V d_mass = (density_a - density_b) * inverse;
    const V d = select<V>(below, sigmoid(-a),
                          select<V>(above, -cdf_b, select<V>(wide, d_mass, d_centre)));
    const V d_scale = select<V>(
        below, -a * sigmoid(-a),
        select<V>(above, b * cdf_b,
                  select<V>(wide, (b * density_b - a * density_a) * inverse, -z * d_centre - one)));
    bin.d_mean = -inv_scale * d;
    bin.d_log_scale = select<V>(log_scale < classes.log_scale_min, zero, d_scale);
  }
  return bin;
}

// log p(x | component), nats, summed over the C colours; green's mean depends on red, blue's on both.
template <bool pixelcnnpp, bool gradient, class V, int C>
GMFAST_HD V component_log_prob(const V (&x)[C], const LogisticComponent<V, C>& component,
                               const Classes<V>& classes, LogisticGradient<V, C>& grad) {
  V mean[C], weight[C];
  mean[0] = component.mean[0];
  if constexpr (C == 3) {
    for (int c = 0; c < C; ++c) weight[c] = tanh(component.coeff[c]);
    mean[1] = fma(weight[0], x[0], component.mean[1]);
    mean[2] = fma(weight[2], x[1], fma(weight[1], x[0], component.mean[2]));
  }

  V linear = splat<V>(0), factor = splat<V>(1);
  for (int c = 0; c < C; ++c) {
    const LogisticBin<V> bin =
        pixelcnnpp ? pixelcnnpp_bin<gradient>(x[c], mean[c], component.log_scale[c], classes)
                   : exact_bin<gradient>(x[c], mean[c], component.log_scale[c], classes);
    linear += bin.linear;
    factor *= bin.factor;
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
  return linear + log_positive(factor);
}

// Draws the colours of a pixel from one component, each clamped and rounded before the next uses it.
// `uniform` in the open interval (0, 1).
template <class V, int C>
GMFAST_HD void sample_component(const LogisticComponent<V, C>& component, const V (&uniform)[C],
                                V temperature, bool quantize, const Classes<V>& classes,
                                V (&x)[C]) {
  const V one = splat<V>(1);
  for (int c = 0; c < C; ++c) {
    V mean = component.mean[c];
    if (c == 1) mean = fma(tanh(component.coeff[0]), x[0], mean);
    if (c == 2) {
      mean = fma(tanh(component.coeff[1]), x[0], mean);
      mean = fma(tanh(component.coeff[2]), x[1], mean);
    }
    const V noise = temperature * (log(uniform[c]) - log1p(-uniform[c]));
    V value = fma(exp(max(component.log_scale[c], classes.log_scale_min)), noise, mean);
    value = min(max(value, -one), one);
    if (quantize) {
      const V index = round((value + one) * (classes.count * splat<V>(Scalar<V>(0.5))));
      value = min(index * (classes.delta + classes.delta) - one, one);
    }
    x[c] = value;
  }
}

}  // namespace GMFAST_LEVEL
}  // namespace gmfast
