// The mass of a normal distribution in the bin of a level in [-1, 1].
#pragma once

#include "elementary.h"
#include "simd.h"

namespace gmfast {
inline namespace GMFAST_LEVEL {

// Levels are 2 half apart. What rounding took from the constants is kept beside them, because bins
// may be millions of standard deviations wide, or distances from their edges.
template <class V>
struct GaussianLevels {
  using S = Scalar<V>;
  V half, half_low, log_half, log_half_low, lowest, highest;

  GMFAST_HD explicit GaussianLevels(int64_t num_classes) {
    const double count = double(num_classes - 1), log_count = -__builtin_log(count);
    half = splat<V>(S(1 / count));
    half_low = splat<V>(S(__builtin_fma(-double(S(1 / count)), count, 1.0) / count));
    log_half = splat<V>(S(log_count));
    log_half_low = splat<V>(S(log_count - double(S(log_count))));
    lowest = splat<V>(S(-1 + 1 / count));
    highest = splat<V>(S(1 - 1 / count));
  }
};

// -log of the mass and its derivatives.
template <class V>
struct GaussianBin {
  V nll, by_mean, by_log_scale;
};

// Log-scales below count as this one, whose reciprocal still leaves room for numbers.
template <class V>
constexpr Scalar<V> lowest_log_scale = is_single<V> ? -80 : -600;

// The mean of e^(-z t - t^2/2) over |t| <= h, from w = z h <= 1/2 and y = h^2 <= 1/2: times 2 h and
// the density at z it is the mass of a bin. A series in Hermite polynomials,
// sum He_2k(z) h^2k / (2k + 1)!, whose terms follow from the two before.
template <class V>
GMFAST_HD V narrow_mass(V w, V y) {
  using S = Scalar<V>;
  constexpr int terms = is_single<V> ? 6 : 13;
  V even = splat<V>(1), odd = w, sum = splat<V>(1);
  double factorial = 1;
  GMFAST_UNROLL
  for (int k = 1; k <= terms; ++k) {
    factorial *= (2 * k) * (2 * k + 1);
    even = fma(w, odd, splat<V>(S(1 - 2 * k)) * (y * even));
    sum = fma(even, splat<V>(S(1 / factorial)), sum);
    odd = fma(w, even, splat<V>(S(-2 * k)) * (y * odd));
  }
  return sum;
}

// The exact mass, by |x - mean|: standardised, x is z from the mean and its bin reaches h to either
// side, from near = z - h to far = z + h. With Q(t) = e^(-t^2/2) erfcx(t/sqrt 2)/2 the tail beyond
// t, the mass is Q(near) - Q(far), where all is left of the e^(-near^2/2) of both; 1 - Q(-near) -
// Q(far) around the mean; and where these would cancel, in bins of less than a standard deviation,
// 2 h times the density times narrow_mass(). A bin at the end has one of the two edges.
//
// nll and its derivatives are within 6 ulp (double: 12) where nll is above 0.01, for every z and
// scale; below, where the rounding of log_scale counts most, within 3 |log nll| ulp. (by_log_scale
// is a difference: within so many ulp of the larger of itself and 1.)
template <bool gradient, class V>
GMFAST_HD GaussianBin<V> exact_gaussian_bin(V x, V mean, V log_scale,
                                            const GaussianLevels<V>& levels) {
  using S = Scalar<V>;
  const V zero = splat<V>(0), one = splat<V>(1), half = splat<V>(S(0.5));
  const V s = max(splat<V>(lowest_log_scale<V>), log_scale);
  const V inverse = exp(-s);
  // x - mean and what rounding took from it.
  const V centred = x - mean, back = centred - x;
  const V lost = (x - (centred - back)) - (mean + back);
  const auto left = centred < zero;
  const V distance = abs(centred), distance_low = select<V>(left, -lost, lost);
  const V z = distance * inverse, h = levels.half * inverse;
  const V near = ((distance - levels.half) + (distance_low - levels.half_low)) * inverse;
  const V far = z + h;
  const V w = z * h, y = h * h;

  const auto below = x < levels.lowest;   // reaches to minus infinity
  const auto above = x > levels.highest;  // reaches to infinity
  const auto outer = mask_or(below, above);
  const auto near_only = mask_or(mask_and(below, left), mask_and(above, mask_not(left)));
  const auto far_only = mask_and(outer, mask_not(near_only));
  const auto narrow = mask_and(mask_not(outer), mask_and(w <= half, y <= half));
  const auto inside = mask_or(near < zero, far_only);  // of the bin or of the end's half-line

  // e^(-2 w) is what Q(far) has less than Q(near).
  // Below 1e-15, (1 - e) / (2 w) is 1.
  const V width = max(splat<V>(S(1e-15)), w + w);
  V e, e_minus_1 = zero;
  if constexpr (gradient) {
    exp_expm1_nonpositive(-width, &e, &e_minus_1);
  } else {
    e = exp_nonpositive(-width);
  }
  const V half_square = half * near * near;
  const V exponential = gradient ? exp(select<V>(narrow, fma(-half, y, w), -half_square))
                                 : exp_nonpositive(-half_square);

  V mass = one, tails = one, base = zero, density = one, over = one, stretch = one;
  if (any(narrow)) {
    mass = narrow_mass(w, y);
    density = exponential, over = mass;
    mass *= splat<V>(S(0.79788456080286535588));  // sqrt(2/pi)
    base = fma(half * z, z, (s - levels.log_half) - levels.log_half_low);
  }
  if (any(mask_not(narrow))) {
    const V root_half = splat<V>(S(0.70710678118654752440));
    const V a = abs(near) * root_half;
    const V of_near = select<V>(far_only, zero, erfcx_nonnegative(a));
    const V of_far = select<V>(near_only, zero, e * erfcx_nonnegative(far * root_half));
    tails = half * exponential * (of_near + of_far);
    const V beyond = of_near - of_far, within = one - tails;
    mass = select<V>(narrow, mass, select<V>(inside, within, half * beyond));
    tails = select<V>(mask_and(inside, mask_not(narrow)), tails, one);
    base = select<V>(narrow, base, select<V>(inside, zero, half_square));
    if constexpr (gradient) {
      // The density at near over the mass. Where erfcx stays, from 2^30 on, 1/erfcx grows with a.
      density = select<V>(narrow, density,
                          select<V>(inside, exponential * splat<V>(S(0.39894228040143267794)),
                                    splat<V>(S(0.79788456080286535588))));
      stretch = select<V>(mask_or(narrow, inside), one, max(one, a * splat<V>(S(0x1p-30))));
      over = select<V>(narrow, over, select<V>(inside, within, beyond));
    }
  }

  GaussianBin<V> bin;
  // Where little is outside, the logarithm of 1 - tails is taken without the difference.
  const LogReduction<V> reduced = reduce_log(mass);
  const V m = is_avx512<V> ? reduced.m : fma(mass, zero, reduced.m);  // lets a NaN through
  bin.nll = base - log_of_reduced(reduced.k, select<V>(tails < splat<V>(S(0.25)), -tails, m - one));
  if constexpr (gradient) {
    const V rate = quotient(density, over) * stretch;
    const V far_e = select<V>(e == zero, zero, far * e);
    // Wide: rate times the difference of the edges' densities. Narrow: it is 2 z h share.
    const V share = quotient(-e_minus_1, width);
    V by_z = select<V>(near_only, one, select<V>(far_only, -e, min(-e_minus_1, w + w)));
    by_z = select<V>(narrow, z * share, by_z);
    V by_s = select<V>(near_only, -near, select<V>(far_only, far_e, far_e - near));
    by_s = select<V>(narrow, fma(-z * z, share, half * (one + e)), by_s);
    bin.by_mean = -copysign(inverse, centred) * (rate * by_z);
    bin.by_log_scale = select<V>(log_scale < splat<V>(lowest_log_scale<V>), zero, rate * by_s);
  }
  return bin;
}

// The published approximation: differences of a cdf made of tanh, at least 1e-12, and the levels at
// the ends told by |x| > 0.999.
template <bool gradient, class V>
GMFAST_HD GaussianBin<V> improved_ddpm_bin(V x, V mean, V log_scale,
                                           const GaussianLevels<V>& levels) {
  using S = Scalar<V>;
  const V zero = splat<V>(0), one = splat<V>(1);
  const V inverse = exp(-max(splat<V>(lowest_log_scale<V>), log_scale));
  const V centred = x - mean;
  // Beyond 30 all is 0 or 1.
  const auto clamp = [](V v) { return max(splat<V>(-30), min(splat<V>(30), v)); };
  const V upper = clamp((centred + levels.half) * inverse);
  const V lower = clamp((centred - levels.half) * inverse);
  // (1 + tanh(v))/2 is sigmoid(2 v).
  const V twice = splat<V>(S(1.59576912160573071176)), cubic = splat<V>(S(0.044715));
  const auto argument = [&](V v) { return twice * fma(cubic * v * v, v, v); };
  const auto slope = [&](V v) { return twice * fma(splat<V>(S(3 * 0.044715)) * v, v, one); };
  const V at_upper = argument(upper), at_lower = argument(lower);
  const V below_upper = sigmoid(at_upper), above_upper = sigmoid(-at_upper);
  const V below_lower = sigmoid(at_lower), above_lower = sigmoid(-at_lower);
  const auto first = x<splat<V>(S(-0.999)), last = x> splat<V>(S(0.999));
  const V between = select<V>(centred > zero, above_lower - above_upper, below_upper - below_lower);
  const V mass = select<V>(first, below_upper, select<V>(last, above_lower, between));
  const V least = splat<V>(S(1e-12)), clamped = max(least, mass);

  GaussianBin<V> bin;
  bin.nll = -log_positive(clamped);
  if constexpr (gradient) {
    const V of_upper = select<V>(last, zero, below_upper * above_upper * slope(upper));
    const V of_lower =
        select<V>(mask_and(first, mask_not(last)), zero, below_lower * above_lower * slope(lower));
    const V rate = select<V>(mass < least, zero, one / clamped);
    bin.by_mean = inverse * (rate * (of_upper - of_lower));
    bin.by_log_scale = select<V>(log_scale < splat<V>(lowest_log_scale<V>), zero,
                                 rate * (upper * of_upper - lower * of_lower));
  }
  return bin;
}

template <bool gradient, class V>
GMFAST_HD GaussianBin<V> gaussian_bin(bool exact, V x, V mean, V log_scale,
                                      const GaussianLevels<V>& levels) {
  return exact ? exact_gaussian_bin<gradient>(x, mean, log_scale, levels)
               : improved_ddpm_bin<gradient>(x, mean, log_scale, levels);
}

}  // namespace GMFAST_LEVEL
}  // namespace gmfast
