// The monotone rational-quadratic spline of Durkan et al. (2019, arXiv:1906.04032), eqs. 4-8, one
// element at a time: from the raw numbers of its bins to the value, its log-derivative, and the
// gradients of both.
//
// Within a bin of width w and height h, with slope s = h / w and the slopes d0 and d1 at its knots,
// theta = (x - left) / w goes from 0 to 1, and t = (y - below) / h with it. With rest = 1 - theta
// and m = theta rest,
//
//   t = theta (s theta + d0 rest) / D       D = s (1 - 2m) + (d0 + d1) m
//   dy/dx = s^2 E / D^2                     E = d1 theta^2 + 2 s m + d0 rest^2
//
// which are sums of terms of one sign. A value is the line through the bin's ends and what departs
// from it, which is rounded in units of itself and not of the bin:
//
//   y = below + s (x - left) + h c    x = left + (y - below) / s - w c
//   c = t - theta = m ((d0 - s) rest - (d1 - s) theta) / D
//
// The inverse is of one sign too in this form: with u = d0 (1 - t) - d1 t
// the quadratic's discriminant is u^2 + 4 s^2 t (1 - t), never negative, and its root gives theta :
// rest as 2 s t : R where u >= 0, R : 2 s (1 - t) where u < 0, with R = |u| + sqrt(discriminant).
#pragma once

#include "elementary.h"
#include "simd.h"

namespace gmfast {
inline namespace GMFAST_LEVEL {

// ---------------------------------------------------------------------------------------------
// From raw numbers to a bin
// ---------------------------------------------------------------------------------------------

// What holds for every element.
template <class V>
struct Spline {
  int bins;
  bool linear_tails;
  Scalar<V> bound, min_derivative;
  Scalar<V> least_width, least_height;    // 2 bound times the least share of a bin
  Scalar<V> spread_width, spread_height;  // what the softmax shares out

  GMFAST_HD Spline(int64_t bins, bool linear_tails, double bound, double min_bin_width,
                   double min_bin_height, double min_derivative)
      : bins(int(bins)),
        linear_tails(linear_tails),
        bound(Scalar<V>(bound)),
        min_derivative(Scalar<V>(min_derivative)),
        least_width(Scalar<V>(2 * bound * min_bin_width)),
        least_height(Scalar<V>(2 * bound * min_bin_height)),
        spread_width(Scalar<V>(2 * bound * (1 - min_bin_width * double(bins)))),
        spread_height(Scalar<V>(2 * bound * (1 - min_bin_height * double(bins)))) {}
};

// A sum of exponentials e^(raw - max), each at most 1, with what its additions round away: a knot
// is known to an ulp of the bound only if its sum is, and a narrow bin magnifies what is missing.
template <class V>
class ExponentialSum {
 public:
  GMFAST_HD void add(V term) {
    const V sum = high_ + term;
    low_ += term - (sum - high_);  // exact, as high_ is not below the term
    high_ = sum;
  }
  GMFAST_HD V value() const { return (high_ - splat<V>(1)) + low_; }

 private:
  V high_ = splat<V>(1), low_ = splat<V>(0);
};

// The bins along one axis. Bin k has `exponential` e^(raw_k - max), and all of them `total`.
template <class V>
struct SplineAxis {
  V total, scale;  // of an exponential, to its share
  Scalar<V> spread, bound, least;

  GMFAST_HD SplineAxis(V total, Scalar<V> spread, Scalar<V> bound, Scalar<V> least)
      : total(total),
        scale(quotient(splat<V>(spread), total)),
        spread(spread),
        bound(bound),
        least(least) {}

  GMFAST_HD V size(V exponential) const { return fma(exponential, scale, splat<V>(least)); }
  // The left end of bin `index`, before which the exponentials sum to `before`: it does not fall
  // where neither does.
  GMFAST_HD V knot(V before, V index) const { return fma(before, scale, start(index)); }
  // The same, rounded less often.
  GMFAST_HD V exact_knot(V before, V index) const {
    return fma(quotient(before, total), splat<V>(spread), start(index));
  }

 private:
  GMFAST_HD V start(V index) const { return fma(index, splat<V>(least), splat<V>(-bound)); }
};

// An element's bin: the exponentials of its width and height and the sums of those before it, and
// the raw derivatives at its knots.
template <class V>
struct SplinePlace {
  V index, width, before_width, height, before_height, raw0, raw1;
};

template <class V>
struct SplineBin {
  V left, width, below, height, slope0, slope1;
};

template <class V>
GMFAST_HD V clamp_to(V x, Scalar<V> bound) {
  return max(splat<V>(-bound), min(splat<V>(bound), x));  // a NaN stays one
}

// The bin of `at`, which is within the bounds, an x or for the inverse a y: the last whose first
// knot is not above it. `widths(k)` and `heights(k)` are the exponentials of bin k,
// `derivatives(k)` is the raw number of knot k, anything where the slope is fixed.
template <bool inverse, class V, class Widths, class Heights, class Derivatives>
GMFAST_HD SplinePlace<V> find_bin(V at, const Spline<V>& spline, const SplineAxis<V>& x_axis,
                                  const SplineAxis<V>& y_axis, const Widths& widths,
                                  const Heights& heights, const Derivatives& derivatives) {
  const V zero = splat<V>(0);
  V width = widths(0), height = heights(0), raw1 = derivatives(1), before = zero;
  SplinePlace<V> place{zero, width, zero, height, zero, derivatives(0), raw1};
  ExponentialSum<V> before_width, before_height;
  for (int k = 1; k < spline.bins; ++k) {
    const V index = splat<V>(Scalar<V>(k)), raw0 = raw1;
    before += inverse ? height : width;
    // Knots do not fall, so that it is true up to the bin and false behind.
    const auto beyond = at >= (inverse ? y_axis : x_axis).knot(before, index);
    before_width.add(select<V>(beyond, width, zero));
    before_height.add(select<V>(beyond, height, zero));
    width = widths(k);
    height = heights(k);
    raw1 = derivatives(k + 1);
    place.index = select<V>(beyond, index, place.index);
    place.width = select<V>(beyond, width, place.width);
    place.height = select<V>(beyond, height, place.height);
    place.raw0 = select<V>(beyond, raw0, place.raw0);
    place.raw1 = select<V>(beyond, raw1, place.raw1);
  }
  place.before_width = before_width.value();
  place.before_height = before_height.value();
  return place;
}

template <class V>
GMFAST_HD SplineBin<V> bin_at(const SplinePlace<V>& place, const Spline<V>& spline,
                              const SplineAxis<V>& x_axis, const SplineAxis<V>& y_axis) {
  const V one = splat<V>(1), least = splat<V>(spline.min_derivative);
  SplineBin<V> bin{x_axis.exact_knot(place.before_width, place.index),
                   x_axis.size(place.width),
                   y_axis.exact_knot(place.before_height, place.index),
                   y_axis.size(place.height),
                   least + softplus(place.raw0),
                   least + softplus(place.raw1)};
  if (spline.linear_tails) {
    const V last = splat<V>(Scalar<V>(spline.bins - 1));
    bin.slope0 = select<V>(place.index == splat<V>(0), one, bin.slope0);
    bin.slope1 = select<V>(place.index == last, one, bin.slope1);
  }
  return bin;
}

// ---------------------------------------------------------------------------------------------
// Within a bin
// ---------------------------------------------------------------------------------------------

template <class V>
struct SplinePoint {
  V theta, rest, t, m, s, inverse_width, inverse_D, E;
  V along;  // from the bin's first end to the argument
};

// theta and t of `at`, an x or for the inverse a y.
template <bool inverse, class V>
GMFAST_HD SplinePoint<V> point_in(V at, const SplineBin<V>& bin) {
  const V one = splat<V>(1), zero = splat<V>(0);
  SplinePoint<V> p;
  p.inverse_width = quotient(one, bin.width);
  p.s = bin.height * p.inverse_width;
  if constexpr (inverse) {
    p.along = max(zero, min(bin.height, at - bin.below));
    p.t = min(one, quotient(p.along, bin.height));
    const V t_rest = one - p.t;
    const V u = bin.slope0 * t_rest - bin.slope1 * p.t;
    const V s_t = p.s * p.t, s_rest = p.s * t_rest;
    // Relative to the larger, so that no square overflows.
    const V largest = max(p.s, abs(u)), unit = quotient(one, largest), u_unit = u * unit;
    const V discriminant = fma(u_unit, u_unit, splat<V>(4) * (s_t * unit) * (s_rest * unit));
    const V R = fma(largest, sqrt(discriminant), abs(u));
    const auto falling = u < zero;
    const V a = select<V>(falling, R, s_t + s_t), b = select<V>(falling, s_rest + s_rest, R);
    const V scale = quotient(one, max(splat<V>(Format<V>::smallest_normal), a + b));
    p.theta = a * scale;
    p.rest = b * scale;
  } else {
    p.along = max(zero, min(bin.width, at - bin.left));
    p.theta = min(one, p.along * p.inverse_width);
    p.rest = one - p.theta;
  }
  p.m = p.theta * p.rest;
  const V D = fma(p.s, fma(splat<V>(-2), p.m, one), (bin.slope0 + bin.slope1) * p.m);
  p.inverse_D = quotient(one, D);
  if constexpr (!inverse) {
    p.t = p.theta * fma(p.s, p.theta, bin.slope0 * p.rest) * p.inverse_D;
  }
  p.E = fma(bin.slope1 * p.theta, p.theta, fma(bin.slope0 * p.rest, p.rest, (p.s + p.s) * p.m));
  return p;
}

// Beyond the bounds the spline goes on as a line of the slope that it has there: of linear tails 1,
// even where bins too narrow for the numbers make another than the first or last that of the bound.
template <class V>
struct SplineTail {
  Mask<V> low, outside;
  V over, slope;

  GMFAST_HD SplineTail(V x, V at, const SplineBin<V>& bin, const Spline<V>& spline)
      : low(x < splat<V>(-spline.bound)),
        outside(mask_or(low, x > splat<V>(spline.bound))),
        over(x - at),
        slope(spline.linear_tails ? splat<V>(1) : select<V>(low, bin.slope0, bin.slope1)) {}
};

// y of x, or x of y, and the logarithm of the derivative in that direction. `at` is x within the
// bounds.
template <bool inverse, class V>
GMFAST_HD V spline_value(V x, V at, const SplineBin<V>& bin, const Spline<V>& spline,
                         V& log_derivative) {
  const SplinePoint<V> p = point_in<inverse>(at, bin);
  const SplineTail<V> tail(x, at, bin, spline);
  const V ratio = p.s * p.inverse_D;
  const V log = log_positive(select<V>(tail.outside, tail.slope, (ratio * p.E) * ratio));
  log_derivative = inverse ? -log : log;
  const V bend = p.m * p.inverse_D * fma(bin.slope0 - p.s, p.rest, (p.s - bin.slope1) * p.theta);
  const V inside =
      min(splat<V>(spline.bound), inverse ? bin.left + fma(-bin.width, bend, quotient(p.along, p.s))
                                          : bin.below + fma(bin.height, bend, p.s * p.along));
  V beyond = x;
  if (!spline.linear_tails) {
    const V slope = inverse ? quotient(splat<V>(1), tail.slope) : tail.slope;
    beyond = fma(tail.over, slope, at);
  }
  return select<V>(tail.outside, beyond, inside);
}

// Derivatives by the argument and by what a bin is made of.
template <class V>
struct SplineGradient {
  V x, left, width, below, height, slope0, slope1;
};

// Of grad_y times the value plus grad_log times the log-derivative. Both directions are the one
// relation between theta and t: `by_t` is the derivative by t of what the forward direction makes
// of it, `by_theta` what that comes to by theta; the inverse knows the second and solves for the
// first.
template <bool inverse, class V>
GMFAST_HD SplineGradient<V> spline_gradient(V x, V at, const SplineBin<V>& bin,
                                            const Spline<V>& spline, V grad_y, V grad_log) {
  const V zero = splat<V>(0), one = splat<V>(1), two = splat<V>(2);
  const SplinePoint<V> p = point_in<inverse>(at, bin);
  const SplineTail<V> tail(x, at, bin, spline);
  if (inverse) grad_log = -grad_log;

  const V d0 = bin.slope0, d1 = bin.slope1;
  const V squares = fma(-two, p.m, one);  // theta^2 + rest^2
  const V inverse_E = quotient(one, p.E), m_over_D = p.m * p.inverse_D;
  const V t_by_theta = p.s * p.inverse_D * (p.E * p.inverse_D);
  const V log_by_theta =
      two * (fma(d1, p.theta, fma(p.s, p.rest - p.theta, -d0 * p.rest)) * inverse_E -
             (d0 + d1 - (p.s + p.s)) * (p.rest - p.theta) * p.inverse_D);

  V by_theta, by_t;
  if constexpr (inverse) {
    by_theta = -grad_y * bin.width;
    by_t = quotient(fma(-grad_log, log_by_theta, by_theta), t_by_theta);
  } else {
    by_t = grad_y * bin.height;
    by_theta = fma(by_t, t_by_theta, grad_log * log_by_theta);
  }

  const V scaled = by_t * m_over_D * p.inverse_D;
  const V by_s =
      fma(scaled, fma(d1 * p.theta, p.theta, -d0 * p.rest * p.rest),
          two * grad_log * (quotient(one, p.s) + p.m * inverse_E - squares * p.inverse_D));
  const V by_slope0 = fma(scaled * p.rest, fma(p.s, p.rest, d1 * p.theta),
                          grad_log * (p.rest * p.rest * inverse_E - two * m_over_D));
  const V by_slope1 = fma(-scaled * p.theta, fma(p.s, p.theta, d0 * p.rest),
                          grad_log * (p.theta * p.theta * inverse_E - two * m_over_D));

  const V inverse_height = quotient(one, bin.height);
  const V along_x = by_theta * p.inverse_width, along_y = by_t * inverse_height;
  SplineGradient<V> grad{inverse ? -along_y : along_x,
                         -along_x,
                         fma(-along_x, p.theta, -by_s * p.s * p.inverse_width),
                         along_y,
                         fma(along_y, p.t, by_s * p.inverse_width),
                         by_slope0,
                         by_slope1};

  // Beyond the bounds only the slope matters.
  const V inverse_slope = quotient(one, tail.slope);
  const V slope = inverse ? inverse_slope : tail.slope;
  const V of_line =
      inverse ? -grad_y * tail.over * inverse_slope * inverse_slope : grad_y * tail.over;
  const V by_slope = spline.linear_tails ? zero : fma(grad_log, inverse_slope, of_line);
  grad.x = select<V>(tail.outside, grad_y * slope, grad.x);
  grad.left = select<V>(tail.outside, zero, grad.left);
  grad.width = select<V>(tail.outside, zero, grad.width);
  grad.below = select<V>(tail.outside, zero, grad.below);
  grad.height = select<V>(tail.outside, zero, grad.height);
  grad.slope0 = select<V>(tail.outside, select<V>(tail.low, by_slope, zero), grad.slope0);
  grad.slope1 = select<V>(tail.outside, select<V>(tail.low, zero, by_slope), grad.slope1);
  return grad;
}

// The softmax's gradient: by the raw number of bin k, from that by the bin's place and size.
template <class V>
struct SplineAxisGradient {
  V scale, index, start, size, mean;

  GMFAST_HD SplineAxisGradient(const SplineAxis<V>& axis, V index, V before, V exponential,
                               V by_start, V by_size)
      : scale(axis.scale),
        index(index),
        start(by_start),
        size(by_size),
        mean(quotient(fma(by_start, before, by_size * exponential), axis.total)) {}

  GMFAST_HD V by_raw(int k, V exponential) const {
    const V at = splat<V>(Scalar<V>(k)), zero = splat<V>(0);
    const V direct = select<V>(at < index, start, select<V>(at == index, size, zero));
    return exponential * scale * (direct - mean);
  }
};

}  // namespace GMFAST_LEVEL
}  // namespace gmfast
