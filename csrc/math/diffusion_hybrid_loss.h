// One element of improved DDPM's two losses (Nichol and Dhariwal, 2021, arXiv:2102.09672).
#pragma once

#include "discretized_gaussian_nll.h"
#include "gaussian_kl.h"

namespace gmfast {
inline namespace GMFAST_LEVEL {

// A row of the DDPM sampler's table: predicted = x0_x x_t + x0_m epsilon, and the mean of the next
// x is x x_t + x0 predicted. All NaN for a time step that the table does not have.
template <class S>
struct HybridCoefficients {
  S x0_x, x0_m, x, x0, log_var_min, half_range;  // half_range: of the log-variances
  bool decoder;                                  // the step to the data

  // Columns of the table, as gmfast/reference/diffusion_step.py names them.
  GMFAST_HD HybridCoefficients(const double* table, int64_t row_stride, int64_t column_stride,
                               int64_t steps, int64_t step)
      : decoder(step == 0) {
    const bool known = step >= 0 && step < steps;
    const auto column = [&](int64_t c) {
      return known ? table[step * row_stride + c * column_stride] : double(__builtin_nan(""));
    };
    x0_x = S(column(0));
    x0_m = S(column(1));
    x = S(column(2));
    x0 = S(column(4));
    log_var_min = S(column(18));
    half_range = S(0.5 * (column(19) - column(18)));
  }
};

template <class V>
struct HybridTerms {
  V simple, bound;  // the bound's in nats
};

// Where the model's two outputs put the next step's distribution.
template <class V>
struct HybridPoint {
  using S = Scalar<V>;
  V mean, log_var;  // the decoder's
  V e, log_ratio;   // of the divergence: see gaussian_kl()
  V half_range;

  GMFAST_HD HybridPoint(const HybridCoefficients<S>& row, V epsilon, V v, V x0, V x_t) {
    half_range = splat<V>(row.half_range);
    const V predicted = fma(splat<V>(row.x0_x), x_t, splat<V>(row.x0_m) * epsilon);
    log_ratio = -half_range * (v + splat<V>(1));
    log_var = splat<V>(row.log_var_min) - log_ratio;
    if (row.decoder) {
      mean = fma(splat<V>(row.x), x_t, splat<V>(row.x0) * predicted);
    } else {
      // What both means have of x_t cancels.
      e = splat<V>(row.x0) * (x0 - predicted) * inverse_std(log_var);
    }
  }
};

template <class V>
GMFAST_HD HybridTerms<V> hybrid_terms(const HybridCoefficients<Scalar<V>>& row, bool exact,
                                      const GaussianLevels<V>& levels, V epsilon, V v, V x0, V x_t,
                                      V noise) {
  const HybridPoint<V> point(row, epsilon, v, x0, x_t);
  const V error = epsilon - noise, half = splat<V>(Scalar<V>(0.5));
  HybridTerms<V> terms;
  terms.simple = error * error;
  terms.bound = row.decoder
                    ? gaussian_bin<false>(exact, x0, point.mean, half * point.log_var, levels).nll
                    : gaussian_kl(point.e, point.log_ratio);
  return terms;
}

// The first term by epsilon, and the second by v.
template <class V>
GMFAST_HD void hybrid_backward(const HybridCoefficients<Scalar<V>>& row, bool exact,
                               const GaussianLevels<V>& levels, V epsilon, V v, V x0, V x_t,
                               V noise, V& by_epsilon, V& by_v) {
  const HybridPoint<V> point(row, epsilon, v, x0, x_t);
  const V half = splat<V>(Scalar<V>(0.5));
  const V error = epsilon - noise;
  by_epsilon = error + error;
  V by_log_var;
  if (row.decoder) {
    by_log_var =
        half * gaussian_bin<true>(exact, x0, point.mean, half * point.log_var, levels).by_log_scale;
  } else {
    V by_other;
    gaussian_kl_by_logvar(point.e, point.log_ratio, by_other, by_log_var);
  }
  by_v = by_log_var * point.half_range;
}

}  // namespace GMFAST_LEVEL
}  // namespace gmfast
