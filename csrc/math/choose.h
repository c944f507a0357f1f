// One of several by inverse CDF, with probabilities given as logits.
#pragma once

#include "elementary.h"
#include "random.h"
#include "simd.h"

namespace gmfast {
inline namespace GMFAST_LEVEL {

// The first k < count whose weight exp(logit · inverse_temperature), added to those before, exceeds
// the share `uniform` of all. `logits(k)` gives those of k and the lanes behind it, minus infinity
// where there are no more.
template <class V, class Logits>
GMFAST_HD int64_t choose(int64_t count, Scalar<V> inverse_temperature, Scalar<V> uniform,
                         const Logits& logits) {
  using S = Scalar<V>;
  V top = logits(0);
  for (int64_t k = lanes<V>; k < count; k += lanes<V>) top = max(top, logits(k));
  const V highest = splat<V>(reduce_max(top));
  const auto weights = [&](int64_t k) {
    return exp_nonpositive((logits(k) - highest) * splat<V>(inverse_temperature));
  };
  S total = 0;
  for (int64_t k = 0; k < count; k += lanes<V>) total += reduce_add(weights(k));
  const S threshold = uniform * total;
  S cumulative = 0;
  for (int64_t k = 0; k < count; k += lanes<V>) {
    const V weight = weights(k);
    const S next = cumulative + reduce_add(weight);
    if (next > threshold) {
      if constexpr (is_scalar<V>) {
        return k;
      } else {
        for (int lane = 0; lane < lanes<V> && k + lane < count; ++lane) {
          cumulative += weight[lane];
          if (cumulative > threshold) return k + lane;
        }
      }
    }
    cumulative = next;
  }
  return count - 1;
}

// Four uniform numbers of a position of a sample. A double takes its low bits from the same word of
// a second block, so that it rounds to the float.
template <class S>
GMFAST_HD void position_uniforms(Stream stream, uint64_t position, S (&uniform)[4]) {
  const auto high = random_words<S>(stream, position);
  if constexpr (is_single<S>) {
    GMFAST_UNROLL
    for (int i = 0; i < 4; ++i) uniform[i] = uniform_of_bits<S>(high.word[i]);
  } else {
    stream.draw += 1;
    const auto low = random_words<S>(stream, position);
    GMFAST_UNROLL
    for (int i = 0; i < 4; ++i) {
      uniform[i] = uniform_of_bits<S>(join_words<S>(low.word[i], high.word[i]));
    }
  }
}

}  // namespace GMFAST_LEVEL
}  // namespace gmfast
