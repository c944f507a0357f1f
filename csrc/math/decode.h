// One draw from the distribution that a decode program computed for a position.
#pragma once

#include "choose.h"
#include "discretized_logistic_mixture.h"

namespace gmfast {
inline namespace GMFAST_LEVEL {

// Draws a pixel from a mixture of coupled logistics, with parameters in the public layout.
template <class V, int C>
GMFAST_HD void draw_mixture(const Scalar<V>* params, int64_t mixtures,
                            const Scalar<V> (&uniform)[4], Scalar<V> temperature,
                            const Classes<Scalar<V>>& classes, Scalar<V> (&x)[C]) {
  using S = Scalar<V>;
  const S inverse_temperature = S(1) / max(temperature, S(1e-30));
  const int64_t chosen = choose<V>(mixtures, inverse_temperature, uniform[0], [&](int64_t k) {
    if constexpr (is_scalar<V>) {
      return params[k];
    } else {
      const int count = int(mixtures - k < lanes<V> ? mixtures - k : lanes<V>);
      const V infinite = splat<V>(-Format<V>::infinity);
      return select<V>(iota<V>() < splat<V>(S(count)), load_partial<V>(params + k, count),
                       infinite);
    }
  });
  constexpr int of_colour = C == 1 ? 2 : 3;
  LogisticComponent<S, C> component;
  S noise[C];
  GMFAST_UNROLL
  for (int c = 0; c < C; ++c) {
    const S* of = params + (1 + c * of_colour) * mixtures + chosen;
    component.mean[c] = of[0];
    component.log_scale[c] = of[mixtures];
    if constexpr (C == 3) component.weight[c] = tanh(of[2 * mixtures]);
    noise[c] = uniform[1 + c];
  }
  sample_component(component, noise, temperature, true, classes, x);
}

// Draws one of `levels` values in [-1, 1] from their logits, or of two from the logit of the upper.
template <class V>
GMFAST_HD Scalar<V> draw_level(const Scalar<V>* logits, bool bernoulli, int64_t levels,
                               Scalar<V> uniform, Scalar<V> temperature) {
  using S = Scalar<V>;
  const S inverse_temperature = S(1) / max(temperature, S(1e-30));
  int64_t chosen;
  if (bernoulli) {
    chosen =
        choose<S>(2, inverse_temperature, uniform, [&](int64_t k) { return k ? logits[0] : S(0); });
  } else {
    chosen = choose<V>(levels, inverse_temperature, uniform, [&](int64_t k) {
      if constexpr (is_scalar<V>) {
        return logits[k];
      } else {
        if (levels - k >= lanes<V>) return load<V>(logits + k);
        const int count = int(levels - k);
        const V infinite = splat<V>(-Format<V>::infinity);
        return select<V>(iota<V>() < splat<V>(S(count)), load_partial<V>(logits + k, count),
                         infinite);
      }
    });
  }
  return S(2 * chosen) / S(levels - 1) - S(1);
}

}  // namespace GMFAST_LEVEL
}  // namespace gmfast
