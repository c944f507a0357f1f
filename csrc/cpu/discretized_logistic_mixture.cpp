#include "../args/discretized_logistic_mixture.h"

#include "../common/parallel.h"
#include "../math/discretized_logistic_mixture.h"
#include "../math/random.h"
#include "reduce.h"
#include "tile.h"

namespace gmfast {
inline namespace GMFAST_LEVEL {
namespace {

// Rows of a tile of parameters, in the order of the public layout.
template <int C>
struct Rows {
  int64_t mixtures;

  int64_t mean(int c, int64_t k) const { return (1 + c * (C == 1 ? 2 : 3)) * mixtures + k; }
  int64_t log_scale(int c, int64_t k) const { return mean(c, k) + mixtures; }
  int64_t coeff(int c, int64_t k) const { return mean(c, k) + 2 * mixtures; }
  int64_t count() const { return (C == 1 ? 3 : 10) * mixtures; }

  template <class V, class S>
  GMFAST_HD LogisticComponent<V, C> component(Tile<S>& params, int64_t k, int i) const {
    LogisticComponent<V, C> component;
    for (int c = 0; c < C; ++c) {
      component.mean[c] = load<V>(params.row(mean(c, k)) + i);
      component.log_scale[c] = load<V>(params.row(log_scale(c, k)) + i);
      if (C == 3) component.weight[c] = load<V>(params.row(coeff(c, k)) + i);
    }
    return component;
  }
};

// Makes the colours' coefficients of a tile their weights. A loop of its own: within the next one,
// the latency of tanh would stand before everything else.
template <class V, int C>
void coefficients_to_weights(Tile<Scalar<V>>& params, int64_t mixtures, int count) {
  const Rows<C> rows{mixtures};
  for (int c = 0; C == 3 && c < C; ++c) {
    for (int64_t k = 0; k < mixtures; ++k) {
      Scalar<V>* row = params.row(rows.coeff(c, k));
      for (int i = 0; i < count; i += lanes<V>) store(row + i, tanh(load<V>(row + i)));
    }
  }
}

// The loss of lanes i.. of a tile. With `gradient`, the rows of `params` become gradient_scale
// times the loss's derivatives by them, and those of `x` likewise. Scratch: `exponents` and
// `factors` K rows, `by_x` C·K.
template <class V, int C, Bin bin, bool gradient>
V tile_nll(Tile<Scalar<V>>& x, Tile<Scalar<V>>& params, Tile<Scalar<V>>& exponents,
           Tile<Scalar<V>>& factors, Tile<Scalar<V>>& by_x, int64_t mixtures,
           const Classes<V>& classes, V gradient_scale, int i) {
  const Rows<C> rows{mixtures};
  V pixel[C];
  for (int c = 0; c < C; ++c) pixel[c] = load<V>(x.row(c) + i);

  V top_logit = load<V>(params.row(0) + i), top = splat<V>(-Format<V>::infinity);
  for (int64_t k = 0; k < mixtures; ++k) {
    LogisticGradient<V, C> grad;
    const Probability<V> probability = component_probability<bin, gradient>(
        pixel, rows.template component<V>(params, k, i), classes, grad);
    const V logit = load<V>(params.row(k) + i), exponent = logit + probability.exponent;
    store(exponents.row(k) + i, exponent);
    store(factors.row(k) + i, probability.factor);
    top = max(top, exponent);
    top_logit = max(top_logit, logit);
    if constexpr (gradient) {
      for (int c = 0; c < C; ++c) {
        store(params.row(rows.mean(c, k)) + i, grad.mean[c]);
        store(params.row(rows.log_scale(c, k)) + i, grad.log_scale[c]);
        if (C == 3) store(params.row(rows.coeff(c, k)) + i, grad.coeff[c]);
        store(by_x.row(c * mixtures + k) + i, grad.x[c]);
      }
    }
  }

  V sum = splat<V>(0), sum_logit = splat<V>(0);
  for (int64_t k = 0; k < mixtures; ++k) {
    const V weight = exp_nonpositive(load<V>(params.row(k) + i) - top_logit);
    const V joint =
        exp_nonpositive(load<V>(exponents.row(k) + i) - top) * load<V>(factors.row(k) + i);
    sum_logit += weight;
    sum += joint;
    if constexpr (gradient) {
      store(params.row(k) + i, weight);
      store(factors.row(k) + i, joint);
    }
  }

  if constexpr (gradient) {
    const V prior_scale = gradient_scale / sum_logit, posterior_scale = -gradient_scale / sum;
    V grad_x[C] = {};
    for (int64_t k = 0; k < mixtures; ++k) {
      const V posterior = posterior_scale * load<V>(factors.row(k) + i);  // negated: of the loss
      Scalar<V>* weight = params.row(k) + i;
      store(weight, fma(prior_scale, load<V>(weight), posterior));
      GMFAST_UNROLL
      for (int c = 0; c < C; ++c) {
        GMFAST_UNROLL
        for (int j = 0; j < (C == 1 ? 2 : 3); ++j) {  // mean, log_scale, coeff
          Scalar<V>* value = params.row(rows.mean(c, k) + j * mixtures) + i;
          store(value, posterior * load<V>(value));
        }
        grad_x[c] = fma(posterior, load<V>(by_x.row(c * mixtures + k) + i), grad_x[c]);
      }
    }
    for (int c = 0; c < C; ++c) store(x.row(c) + i, grad_x[c]);
  }
  return (top_logit - top) + (log_positive(sum_logit) - log_positive(sum));
}

template <class V, int C>
bool has_outermost(Tile<Scalar<V>>& x, const Classes<V>& classes, int i) {
  V low = load<V>(x.row(0) + i), high = low;
  for (int c = 1; c < C; ++c) {
    low = min(low, load<V>(x.row(c) + i));
    high = max(high, load<V>(x.row(c) + i));
  }
  return any(mask_or(low<classes.lowest, high> classes.highest));
}

template <class S, int C, bool pixelcnnpp, bool gradient>
void nll(const LogisticMixtureNll& args) {
  using V = Native<S>;
  const int64_t numel = args.batch * args.pixels;
  const int64_t tiles = (numel + tile_pixels - 1) / tile_pixels;
  const Rows<C> rows{args.mixtures};
  const Classes<V> classes(args.num_classes, args.log_scale_min);
  const V gradient_scale = splat<V>(S(args.gradient_scale));
  parallel_for(tiles, 1, [&](int64_t begin, int64_t end) {
    Tile<S> x(C), params(rows.count()), exponents(args.mixtures), factors(args.mixtures),
        by_x(gradient ? C * args.mixtures : 0);
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t first = tile * tile_pixels;
      const int count = int(numel - first < tile_pixels ? numel - first : tile_pixels);
      load_tile(args.x, first, count, C, args.pixels, x);
      load_tile(args.params, first, count, rows.count(), args.pixels, params);
      coefficients_to_weights<V, C>(params, args.mixtures, count);
      S* loss = static_cast<S*>(args.loss) + first;
      const int64_t next = first + tile_pixels;
      for (int i = 0; i < count; i += lanes<V>) {
        if (tile + 1 < end) {
          constexpr int parts = tile_pixels / lanes<V>;
          prefetch_tile<false>(args.params, next, numel - next, rows.count(), args.pixels,
                               i / lanes<V>, parts);
          if (gradient && args.grad_params.data) {
            prefetch_tile<true>(args.grad_params, next, numel - next, rows.count(), args.pixels,
                                i / lanes<V>, parts);
          }
        }
        // Most vectors of pixels have none of an outermost class, and need not look for it.
        constexpr Bin any_x = pixelcnnpp ? Bin::pixelcnnpp : Bin::exact;
        constexpr Bin within = pixelcnnpp ? Bin::pixelcnnpp : Bin::exact_within;
        const auto nll_of_lanes = has_outermost<V, C>(x, classes, i)
                                      ? tile_nll<V, C, any_x, gradient>
                                      : tile_nll<V, C, within, gradient>;
        const V value = nll_of_lanes(x, params, exponents, factors, by_x, args.mixtures, classes,
                                     gradient_scale, i);
        if (count - i >= lanes<V>) {
          store(loss + i, value);
        } else {
          store_partial(loss + i, value, count - i);
        }
      }
      if constexpr (gradient) {
        if (args.grad_params.data) {
          store_tile(args.grad_params, first, count, rows.count(), args.pixels, params);
        }
        if (args.grad_x.data) store_tile(args.grad_x, first, count, C, args.pixels, x);
      }
    }
  });
}

template <class S>
void nll_of(const LogisticMixtureNll& args) {
  const bool gradient = args.grad_x.data || args.grad_params.data;
  const int variant = (args.channels == 3 ? 4 : 0) + (args.pixelcnnpp ? 2 : 0) + gradient;
  static constexpr void (*variants[])(const LogisticMixtureNll&) = {
      nll<S, 1, false, false>, nll<S, 1, false, true>,  nll<S, 1, true, false>,
      nll<S, 1, true, true>,   nll<S, 3, false, false>, nll<S, 3, false, true>,
      nll<S, 3, true, false>,  nll<S, 3, true, true>};
  variants[variant](args);
  if (args.total) {
    const int64_t rows = args.total_over_batch ? 1 : args.batch;
    sum_rows(static_cast<const S*>(args.loss), rows, args.batch * args.pixels / (rows ? rows : 1),
             args.total_scale, static_cast<S*>(args.total));
  }
}

// Uniform draw `draw` of a tile's pixels, keyed by sample and pixel. A double takes its low bits
// from the same word of a second block, so that it rounds to the float.
template <class S>
void load_uniforms(const Seeds& seeds, int draw, int64_t first, int count, int64_t pixels,
                   Tile<S>& tile) {
  using V = Native<S>;
  for_each_run(first, count, pixels, [&](const Run& run) {
    const Stream block[] = {stream_of(seeds, run.sample, 0), stream_of(seeds, run.sample, 1)};
    const auto words = [&](int k, int i) {
      return random_words<V>(block[k], run.pixel + i).word[draw];
    };
    for (int i = 0; i < run.count; i += lanes<V>) {
      const int rest = run.count - i;
      V uniform;
      if constexpr (is_single<V>) {
        uniform = uniform_of_bits<V>(words(0, i));
      } else {
        uniform = uniform_of_bits<V>(join_words<V>(words(1, i), words(0, i)));
      }
      store_partial(tile.row(draw) + run.start + i, uniform, rest < lanes<V> ? rest : lanes<V>);
    }
  });
}

// The component that each lane's first uniform picks by inverse CDF: the first whose cumulative
// weight exceeds it.
template <class V, int C>
LogisticComponent<V, C> pick_component(Tile<Scalar<V>>& params, Tile<Scalar<V>>& uniforms,
                                       int64_t mixtures, V inverse_temperature, int i) {
  const Rows<C> rows{mixtures};
  V top = load<V>(params.row(0) + i);
  for (int64_t k = 1; k < mixtures; ++k) top = max(top, load<V>(params.row(k) + i));
  const auto weight = [&](int64_t k) {
    return exp_nonpositive((load<V>(params.row(k) + i) - top) * inverse_temperature);
  };
  V total = splat<V>(0);
  for (int64_t k = 0; k < mixtures; ++k) total += weight(k);

  const V threshold = load<V>(uniforms.row(0) + i) * total;
  V cumulative = splat<V>(0);
  auto picked = rows.template component<V>(params, 0, i);
  for (int64_t k = 0; k + 1 < mixtures; ++k) {
    cumulative += weight(k);
    const auto beyond = cumulative <= threshold;
    const auto next = rows.template component<V>(params, k + 1, i);
    for (int c = 0; c < C; ++c) {
      picked.mean[c] = select<V>(beyond, next.mean[c], picked.mean[c]);
      picked.log_scale[c] = select<V>(beyond, next.log_scale[c], picked.log_scale[c]);
      if (C == 3) picked.weight[c] = select<V>(beyond, next.weight[c], picked.weight[c]);
    }
  }
  return picked;
}

template <class S, int C>
void sample(const LogisticMixtureSample& args) {
  using V = Native<S>;
  const int64_t numel = args.batch * args.pixels;
  const int64_t tiles = (numel + tile_pixels - 1) / tile_pixels;
  const Rows<C> rows{args.mixtures};
  const Classes<V> classes(args.num_classes, args.log_scale_min);
  const V temperature = splat<V>(S(args.temperature));
  const V inverse_temperature =
      splat<V>(S(1 / (args.temperature < 1e-30 ? 1e-30 : args.temperature)));
  Image image;
  image.data = args.x;
  image.dtype = args.compute();
  image.batch_stride = C * args.pixels;
  image.channel_stride = args.pixels;
  image.pixel_stride = 1;
  parallel_for(tiles, 1, [&](int64_t begin, int64_t end) {
    Tile<S> x(C), params(rows.count()), uniforms(1 + C);
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t first = tile * tile_pixels;
      const int count = int(numel - first < tile_pixels ? numel - first : tile_pixels);
      load_tile(args.params, first, count, rows.count(), args.pixels, params);
      coefficients_to_weights<V, C>(params, args.mixtures, count);
      for (int draw = 0; draw <= C; ++draw) {
        load_uniforms(args.seeds, draw, first, count, args.pixels, uniforms);
      }
      for (int i = 0; i < count; i += lanes<V>) {
        const auto component =
            pick_component<V, C>(params, uniforms, args.mixtures, inverse_temperature, i);
        V uniform[C], value[C];
        for (int c = 0; c < C; ++c) uniform[c] = load<V>(uniforms.row(1 + c) + i);
        sample_component(component, uniform, temperature, args.quantize, classes, value);
        for (int c = 0; c < C; ++c) store(x.row(c) + i, value[c]);
      }
      store_tile(image, first, count, C, args.pixels, x);
    }
  });
}

}  // namespace
}  // namespace GMFAST_LEVEL

GMFAST_DEFINE_CPU_KERNEL(discretized_logistic_mixture_nll, LogisticMixtureNll) {
  args.compute() == DType::float64 ? nll_of<double>(args) : nll_of<float>(args);
}

GMFAST_DEFINE_CPU_KERNEL(discretized_logistic_mixture_sample, LogisticMixtureSample) {
  if (args.compute() == DType::float64) {
    args.channels == 3 ? sample<double, 3>(args) : sample<double, 1>(args);
  } else {
    args.channels == 3 ? sample<float, 3>(args) : sample<float, 1>(args);
  }
}

}  // namespace gmfast
