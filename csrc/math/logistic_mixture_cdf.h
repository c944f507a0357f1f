// The transform of Flow++ (Ho et al., 2019, arXiv:1902.00275): the logit of a logistic mixture's
// CDF, for one element (of each lane) under all its components.
//
// With weights w_k = exp(logit_k), z_k = (x - mean_k) / scale_k and
//   F = sum w_k sigmoid(z_k),  S = sum w_k sigmoid(-z_k),  P = sum w_k sigmoid(z_k) sigmoid(-z_k)
//   / scale_k,
// the logit is log(F / S), and its derivative by x is P (F + S) / (F S): F + S is the sum of the
// weights, which need no softmax.
//
// A Mixture has `count` and, for each k < count,
//   logit(k), minus the largest;  weight(k) = exp(logit(k));  mean(k);
//   log_scale(k), limited;        inverse_scale(k) = exp(-log_scale(k)).
#pragma once

#include "elementary.h"
#include "simd.h"

namespace gmfast {
inline namespace GMFAST_LEVEL {

// Log-scales beyond count as these: e^-s, and what is multiplied by it, is then finite.
template <class V>
constexpr Scalar<V> largest_log_scale = is_single<V> ? Scalar<V>(80) : Scalar<V>(600);
template <class V>
constexpr Scalar<V> largest_position = is_single<V> ? Scalar<V>(1e36) : Scalar<V>(1e300);

template <class V>
GMFAST_HD V limited(V value, Scalar<V> bound) {
  return max(splat<V>(-bound), min(splat<V>(bound), value));
}
template <class V>
GMFAST_HD V limited_log_scale(V log_scale) {
  return limited(log_scale, largest_log_scale<V>);
}

// One component at x: z, t = e^-|z| and r = 1 / (1 + t); the sigmoids of |z| and -|z| are r and tr.
template <class V>
struct LogisticAt {
  V z, t, r;
  Mask<V> negative;
};

// z may be infinite; exponents of it want it finite.
template <class V>
GMFAST_HD LogisticAt<V> logistic_at(V x, V mean, V inverse_scale) {
  const V one = splat<V>(1);
  LogisticAt<V> at;
  at.z = (x - mean) * inverse_scale;
  at.t = exp_nonpositive(-abs(at.z));
  at.r = quotient(one, one + at.t);
  at.negative = at.z < splat<V>(0);
  return at;
}

// sigmoid(-z) - sigmoid(z) = -tanh(z / 2), 1 - 2 r with the sign of z.
template <class V>
GMFAST_HD V asymmetry(const LogisticAt<V>& at) {
  const V of_positive = fma(splat<V>(-2), at.r, splat<V>(1));
  return from_bits<V>(bits(of_positive) ^ (bits(at.z) & bits(splat<V>(Scalar<V>(-0.0)))));
}

// A component's terms of F, S and P, that of P as a product: a sum that multiplies and adds in one
// rounding, whatever else the term is used for, has the same bits wherever it is computed.
template <class V>
struct ComponentTerms {
  V cdf, survival, density_without_factor, density_factor;

  GMFAST_HD V density() const { return density_without_factor * density_factor; }
};

template <class V>
GMFAST_HD ComponentTerms<V> terms_of(const LogisticAt<V>& at, V weight, V inverse_scale) {
  const V large = weight * at.r, small = large * at.t;
  return {select<V>(at.negative, small, large), select<V>(at.negative, large, small), small * at.r,
          inverse_scale};
}

// Of F, S and P: the terms' exponents, or the terms added up.
template <class V>
struct MixtureTerms {
  V cdf, survival, density;
};

// The same divided by e^(their largest exponent), which has the weight and what would underflow.
template <class V>
GMFAST_HD MixtureTerms<V> exponents_of(const LogisticAt<V>& at, V logit, V log_scale) {
  const V zero = splat<V>(0), z = limited(at.z, largest_position<V>);
  return {logit + min(zero, z), logit - max(zero, z), (logit - abs(z)) - log_scale};
}
template <class V>
GMFAST_HD ComponentTerms<V> scaled_terms(const LogisticAt<V>& at, const MixtureTerms<V>& exponents,
                                         const MixtureTerms<V>& top) {
  return {exp_nonpositive(exponents.cdf - top.cdf) * at.r,
          exp_nonpositive(exponents.survival - top.survival) * at.r,
          exp_nonpositive(exponents.density - top.density) * at.r, at.r};
}

// a_k / scale_k with a_k = -tanh(z_k / 2), the derivative by x of the log of component k's density.
template <class V>
GMFAST_HD V bend_of(const LogisticAt<V>& at, V inverse_scale) {
  return asymmetry(at) * inverse_scale;
}

// `bend` is the sum of the terms of P times a_k / scale_k.
template <class V>
struct TermSums : MixtureTerms<V> {
  V bend;
};

template <class V>
GMFAST_HD void add(TermSums<V>& sums, const ComponentTerms<V>& terms, V bend) {
  sums.cdf += terms.cdf;
  sums.survival += terms.survival;
  sums.density = fma(terms.density_without_factor, terms.density_factor, sums.density);
  sums.bend = fma(terms.density(), bend, sums.bend);
}

// What a mixture is at a point.
template <class V>
struct MixturePoint {
  V logit, log_derivative;
  // Their parts in each lane's own units: P/F, P/S, F/(F + S), S/(F + S); the derivative by x.
  V density_over_cdf, density_over_survival, cdf, survival, derivative;
  V slope;  // the derivative of log_derivative
};

// Where nothing that matters can have underflowed in sums of plain terms: below the floor a lost
// term, at most the smallest normal number times an inverse scale, is no longer negligible.
template <class V>
GMFAST_HD Mask<V> sums_are_safe(const MixtureTerms<V>& sums, V largest_inverse_scale) {
  const V floor = splat<V>(is_single<V> ? Scalar<V>(0x1p-60) : Scalar<V>(0x1p-500));
  const V ceiling = splat<V>(is_single<V> ? Scalar<V>(0x1p20) : Scalar<V>(0x1p200));
  return mask_and(mask_and(sums.cdf > floor, sums.survival > floor),
                  mask_and(sums.density > floor, largest_inverse_scale < ceiling));
}

template <class V>
GMFAST_HD V slope_of(const TermSums<V>& sums, const MixturePoint<V>& point) {
  return sums.bend / sums.density + (point.density_over_survival - point.density_over_cdf);
}

template <class V>
GMFAST_HD MixturePoint<V> point_of_sums(const TermSums<V>& sums) {
  const V total = sums.cdf + sums.survival;
  const V inverse_survival = quotient(splat<V>(1), sums.survival);
  const V inverse_total = quotient(splat<V>(1), total);
  MixturePoint<V> point;
  point.logit = log_positive(sums.cdf * inverse_survival);
  point.density_over_cdf = quotient(sums.density, sums.cdf);
  point.density_over_survival = sums.density * inverse_survival;
  point.cdf = sums.cdf * inverse_total;
  point.survival = sums.survival * inverse_total;
  point.derivative = point.density_over_cdf + point.density_over_survival;
  point.log_derivative = log_positive(point.derivative);
  point.slope = slope_of(sums, point);
  return point;
}

template <class V>
GMFAST_HD MixturePoint<V> point_of_scaled_sums(const TermSums<V>& sums,
                                               const MixtureTerms<V>& top) {
  MixturePoint<V> point;
  point.logit = (top.cdf - top.survival) + log_positive(quotient(sums.cdf, sums.survival));
  // F + S is the larger of the two times 1 + e^-|logit|.
  const V tail = exp_nonpositive(-abs(point.logit));
  const auto negative = point.logit < splat<V>(0);
  const V smaller = select<V>(negative, top.cdf, top.survival);
  const V smaller_sum = select<V>(negative, sums.cdf, sums.survival);
  point.log_derivative = (top.density - smaller) +
                         (log_positive(quotient(sums.density, smaller_sum)) + log1p_unit(tail));
  point.derivative = exp(point.log_derivative);
  const V share = quotient(splat<V>(1), splat<V>(1) + tail);
  point.cdf = select<V>(negative, tail * share, share);
  point.survival = select<V>(negative, share, tail * share);
  // P/F = P (F + S) / (F S) * S / (F + S).
  point.density_over_cdf = point.derivative * point.survival;
  point.density_over_survival = point.derivative * point.cdf;
  point.slope = slope_of(sums, point);
  return point;
}

template <class V>
GMFAST_HD MixturePoint<V> select_point(Mask<V> mask, const MixturePoint<V>& a,
                                       const MixturePoint<V>& b) {
  return {select<V>(mask, a.logit, b.logit),
          select<V>(mask, a.log_derivative, b.log_derivative),
          select<V>(mask, a.density_over_cdf, b.density_over_cdf),
          select<V>(mask, a.density_over_survival, b.density_over_survival),
          select<V>(mask, a.cdf, b.cdf),
          select<V>(mask, a.survival, b.survival),
          select<V>(mask, a.derivative, b.derivative),
          select<V>(mask, a.slope, b.slope)};
}

// The sums that a mixture's terms at a point are of: plain ones in lanes where that is safe, else
// those divided by e^top.
template <class V>
struct MixtureSums {
  TermSums<V> terms;
  MixtureTerms<V> top;
  Mask<V> safe;
};

// visit(k, its terms, its a_k / scale_k, the lanes that they are for) is called for each component
// with plain terms for every lane, and again with scaled ones for lanes that need them.
template <class V, class Mixture, class Visit>
GMFAST_HD MixturePoint<V> evaluate(const Mixture& mixture, V x, V largest_inverse_scale,
                                   MixtureSums<V>& sums, const Visit& visit) {
  const V zero = splat<V>(0), least = splat<V>(-Format<V>::infinity);
  sums.terms = {{zero, zero, zero}, zero};
  sums.top = {least, least, least};
  for (int64_t k = 0; k < mixture.count; ++k) {
    const V inverse_scale = mixture.inverse_scale(k);
    const LogisticAt<V> at = logistic_at(x, mixture.mean(k), inverse_scale);
    const ComponentTerms<V> terms = terms_of(at, mixture.weight(k), inverse_scale);
    const V bend = bend_of(at, inverse_scale);
    add(sums.terms, terms, bend);
    visit(k, terms, bend, zero == zero);
  }
  sums.safe = sums_are_safe(sums.terms, largest_inverse_scale);
  const MixturePoint<V> point = point_of_sums(sums.terms);
  if (all(sums.safe)) return point;

  MixtureTerms<V>& top = sums.top;
  for (int64_t k = 0; k < mixture.count; ++k) {
    const LogisticAt<V> at = logistic_at(x, mixture.mean(k), mixture.inverse_scale(k));
    const MixtureTerms<V> exponents = exponents_of(at, mixture.logit(k), mixture.log_scale(k));
    top.cdf = max(top.cdf, exponents.cdf);
    top.survival = max(top.survival, exponents.survival);
    top.density = max(top.density, exponents.density);
  }
  TermSums<V> scaled{{zero, zero, zero}, zero};
  for (int64_t k = 0; k < mixture.count; ++k) {
    const V inverse_scale = mixture.inverse_scale(k);
    const LogisticAt<V> at = logistic_at(x, mixture.mean(k), inverse_scale);
    const ComponentTerms<V> terms =
        scaled_terms(at, exponents_of(at, mixture.logit(k), mixture.log_scale(k)), top);
    const V bend = bend_of(at, inverse_scale);
    add(scaled, terms, bend);
    visit(k, terms, bend, mask_not(sums.safe));
  }
  sums.terms = {{select<V>(sums.safe, sums.terms.cdf, scaled.cdf),
                 select<V>(sums.safe, sums.terms.survival, scaled.survival),
                 select<V>(sums.safe, sums.terms.density, scaled.density)},
                select<V>(sums.safe, sums.terms.bend, scaled.bend)};
  return select_point<V>(sums.safe, point, point_of_scaled_sums(scaled, top));
}

template <class V, class Mixture>
GMFAST_HD MixturePoint<V> evaluate(const Mixture& mixture, V x, V largest_inverse_scale) {
  MixtureSums<V> sums;
  return evaluate(mixture, x, largest_inverse_scale, sums,
                  [](int64_t, const ComponentTerms<V>&, V, Mask<V>) {});
}

// The number in the middle of all those between low and high: halving the interval takes at most
// as many steps as a number has bits, wherever its ends are.
template <class V>
GMFAST_HD V middle_number(V low, V high) {
  constexpr int sign_shift = 8 * int(sizeof(Scalar<V>)) - 1;
  using I = Integer<V>;
  using U = UnsignedInteger<V>;
  const I magnitude = bit_cast<I>(~(splat<U>(1) << sign_shift));
  // Integers in the order of the numbers; the same turns them back.
  const auto ordered = [&](I i) { return i ^ ((i >> sign_shift) & magnitude); };
  const I a = ordered(bits(low)), b = ordered(bits(high));
  return from_bits<V>(ordered((a & b) + ((a ^ b) >> 1)));
}

// x with logit(x) = y. The components' own solutions bracket it; Halley's method, which the
// near-linearity of the logit makes converge within two or three steps from nearly everywhere, is
// replaced by halving the bracket where a step leaves it or follows one that did not halve the
// residual. Its step is Newton's over 1 + step L' / 2, L' the slope of the log-derivative, at most
// twice and at least half of Newton's. Found is where the logit is y but for its rounding error, or
// where the bracket is as narrow as numbers allow: a step is never so small that it could not
// narrow it, and after such a step the next is twice as long. At most `most_evaluations`, which
// only a bracket that has to be halved to the last bit comes near. `point`: what the mixture is at
// x.
template <class V>
constexpr int most_evaluations = is_single<V> ? 100 : 200;
// The middle is that of the interval before so many evaluations, then that of the numbers in it.
constexpr int plain_halvings = 6;

template <class V, class Mixture>
GMFAST_HD V solve(const Mixture& mixture, V y, V largest_inverse_scale, MixturePoint<V>& point) {
  const V epsilon = splat<V>(is_single<V> ? Scalar<V>(0x1p-23) : Scalar<V>(0x1p-52));
  const V half = splat<V>(Scalar<V>(0.5));
  V low = splat<V>(Format<V>::infinity), high = -low;
  V sum = splat<V>(0), weights = splat<V>(0);
  for (int64_t k = 0; k < mixture.count; ++k) {
    const V own = limited(mixture.mean(k) + y / mixture.inverse_scale(k), largest_position<V>);
    low = min(low, own);
    high = max(high, own);
    sum = fma(mixture.weight(k), own, sum);
    weights += mixture.weight(k);
  }
  // NaN stays, and is what is found.
  V x = max(low, min(high, sum / weights));
  V before = splat<V>(Format<V>::infinity), reach = splat<V>(0);
  const V tolerance = (splat<V>(1) + abs(y)) * (epsilon + epsilon);
  auto done = mask_or(mask_not(low < high), x != x);
  for (int i = 0;; ++i) {
    point = evaluate(mixture, x, largest_inverse_scale);
    if (all(done) || i == most_evaluations<V>) break;
    const V residual = point.logit - y;
    low = select<V>(residual < splat<V>(0), x, low);
    high = select<V>(residual > splat<V>(0), x, high);
    const V newton_step = -residual / point.derivative;
    const V curvature = fma(half * newton_step, point.slope, splat<V>(1));
    const V halley_step = newton_step / max(min(splat<V>(2), curvature), half);
    const V least = splat<V>(Scalar<V>(0.75)) * epsilon * abs(x);  // moves x by one number or two
    const auto small = abs(halley_step) <= least;
    reach = select<V>(small, max(least, reach + reach), splat<V>(0));
    const auto exact = abs(residual) <= tolerance;
    const auto narrow = high - low <= least + least;
    const V step = copysign(max(reach, abs(halley_step)), halley_step);
    V next = x + step;
    const auto shrinks = mask_or(small, abs(residual) <= half * before);
    const auto within = mask_and(mask_and(next > low, next < high), shrinks);
    const V middle = i < plain_halvings ? fma(half, high - low, low) : middle_number(low, high);
    next = select<V>(within, next, middle);
    next = select<V>(narrow, max(low, min(high, x + newton_step)), next);
    const auto stays = mask_or(exact, done);
    if (all(stays)) break;
    next = select<V>(stays, x, next);
    // Between neighbouring numbers nothing lies.
    done =
        mask_or(done, mask_or(mask_or(exact, narrow), mask_and(middle == low, mask_not(within))));
    before = select<V>(within, abs(residual), splat<V>(Format<V>::infinity));
    x = next;
  }
  return x;
}

// The gradients of both outputs, of either direction. With p_k, f_k, g_k component k's shares of P,
// F and S, T the logit and L the log of its derivative T':
//   dT/dlogit_k = f_k - g_k                  dL/dlogit_k = p_k - f_k S/(F + S) - g_k F/(F + S)
//   dT/dmean_k = -p_k T'                     dL/dmean_k = -p_k (a_k / scale_k - P/F + P/S)
//   dT/dx = T' = P/F + P/S                   dL/dx = sum p_k a_k / scale_k - P/F + P/S
// with a_k = -tanh(z_k / 2), and of the log-scale (x - mean_k) times that of the mean, for L less
// p_k. The inverse x(y) has dx = (dy - dT) / T', and its log-derivative is -L at x: gradients
// (g, h) of the two are (-(g - h dL/dx) / T', -h) of T and L, and -the former of y.
template <class V>
struct MixtureGradient {
  V by_logit;             // the incoming gradient of T
  V by_logit_derivative;  // that times T', which does not overflow where T' vanishes
  V by_log_derivative;    // the incoming gradient of L
  V shift;                // what all components' gradients by their mean share
  V x;                    // the gradient by the operation's own x
};

template <class V>
GMFAST_HD MixtureGradient<V> gradient_of(const MixturePoint<V>& point, V grad_y,
                                         V grad_log_derivative, bool inverse) {
  const V difference = point.density_over_survival - point.density_over_cdf;
  MixtureGradient<V> gradient;
  if (inverse) {
    const V largest = splat<V>(is_single<V> ? Scalar<V>(1e30) : Scalar<V>(1e290));
    const V total = fma(-grad_log_derivative, point.slope, grad_y);
    gradient.x = limited(total * min(largest, splat<V>(1) / point.derivative), largest_position<V>);
    gradient.by_logit = -gradient.x;
    gradient.by_logit_derivative = -total;
    gradient.by_log_derivative = -grad_log_derivative;
  } else {
    gradient.by_logit = grad_y;
    gradient.by_logit_derivative = grad_y * point.derivative;
    gradient.by_log_derivative = grad_log_derivative;
    gradient.x = fma(grad_log_derivative, point.slope, gradient.by_logit_derivative);
  }
  gradient.shift = fma(gradient.by_log_derivative, difference, gradient.by_logit_derivative);
  return gradient;
}

// The gradients of a component's parameters from its shares of the sums and a_k / scale_k.
template <class V>
GMFAST_HD void component_gradient(const MixtureGradient<V>& gradient, const MixturePoint<V>& point,
                                  const MixtureTerms<V>& shares, V bend, V distance, V& by_logit,
                                  V& by_mean, V& by_log_scale) {
  by_logit = fma(gradient.by_logit, shares.cdf - shares.survival,
                 gradient.by_log_derivative *
                     (shares.density - shares.cdf * point.survival - shares.survival * point.cdf));
  by_mean = -shares.density * fma(gradient.by_log_derivative, bend, gradient.shift);
  by_log_scale = fma(distance, by_mean, -gradient.by_log_derivative * shares.density);
}

}  // namespace GMFAST_LEVEL
}  // namespace gmfast
