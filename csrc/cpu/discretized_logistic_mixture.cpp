#include "../discretized_logistic_mixture.h"

#include "../math/discretized_logistic_mixture.h"
#include "parallel.h"
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
      if (C == 3) component.coeff[c] = load<V>(params.row(coeff(c, k)) + i);
    }
    return component;
  }
};

// The loss of lanes i.. of a tile. With `gradient`, the rows of `params` become the loss's derivatives
// by them, and those of `x` likewise. `joint`: K rows for the components' log-probabilities, then, with
// `gradient`, C·K for their derivatives by x.
template <class V, int C, bool pixelcnnpp, bool gradient>
V tile_nll(Tile<Scalar<V>>& x, Tile<Scalar<V>>& params, Tile<Scalar<V>>& joint, int64_t mixtures,
           const Classes<V>& classes, int i) {
  const Rows<C> rows{mixtures};
  V pixel[C];
  for (int c = 0; c < C; ++c) pixel[c] = load<V>(x.row(c) + i);

  V top_logit = load<V>(params.row(0) + i), top = splat<V>(Scalar<V>(-3e38));
  for (int64_t k = 0; k < mixtures; ++k) {
    LogisticGradient<V, C> grad;
    const V logit = load<V>(params.row(k) + i);
    const V log_prob =
        logit + component_log_prob<pixelcnnpp, gradient>(
                    pixel, rows.template component<V>(params, k, i), classes, grad);
    store(joint.row(k) + i, log_prob);
    top = max(top, log_prob);
    top_logit = max(top_logit, logit);
    if constexpr (gradient) {
      for (int c = 0; c < C; ++c) {
        store(params.row(rows.mean(c, k)) + i, grad.mean[c]);
        store(params.row(rows.log_scale(c, k)) + i, grad.log_scale[c]);
        if (C == 3) store(params.row(rows.coeff(c, k)) + i, grad.coeff[c]);
        store(joint.row((1 + c) * mixtures + k) + i, grad.x[c]);
      }
    }
  }

  V sum = splat<V>(0), sum_logit = splat<V>(0);
  for (int64_t k = 0; k < mixtures; ++k) {
    const V weight = exp_nonpositive(load<V>(params.row(k) + i) - top_logit);
    const V likelihood = exp_nonpositive(load<V>(joint.row(k) + i) - top);
    sum_logit += weight;
    sum += likelihood;
    if constexpr (gradient) {
      store(params.row(k) + i, weight);
      store(joint.row(k) + i, likelihood);
    }
  }

  if constexpr (gradient) {
    const V prior_scale = splat<V>(1) / sum_logit, posterior_scale = splat<V>(-1) / sum;
    V grad_x[C] = {};
    for (int64_t k = 0; k < mixtures; ++k) {
      const V posterior = posterior_scale * load<V>(joint.row(k) + i);  // negated: of the loss
      Scalar<V>* weight = params.row(k) + i;
      store(weight, fma(prior_scale, load<V>(weight), posterior));
      for (int c = 0; c < C; ++c) {
        for (int64_t row = rows.mean(c, k); row < rows.mean(c + 1, k); row += mixtures) {
          Scalar<V>* value = params.row(row) + i;
          store(value, posterior * load<V>(value));
        }
        grad_x[c] = fma(posterior, load<V>(joint.row((1 + c) * mixtures + k) + i), grad_x[c]);
      }
    }
    for (int c = 0; c < C; ++c) store(x.row(c) + i, grad_x[c]);
  }
  return (top_logit - top) + (log(sum_logit) - log(sum));
}

template <class S, int C, bool pixelcnnpp, bool gradient>
void nll(const LogisticMixtureNll& args) {
  using V = Native<S>;
  const int64_t numel = args.batch * args.pixels;
  const int64_t tiles = (numel + tile_pixels - 1) / tile_pixels;
  const Rows<C> rows{args.mixtures};
  const Classes<V> classes(args.num_classes, args.log_scale_min);
  parallel_for(tiles, 1, [&](int64_t begin, int64_t end) {
    Tile<S> x(C), params(rows.count()), joint(args.mixtures * (gradient ? 1 + C : 1));
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t first = tile * tile_pixels;
      const int count = int(numel - first < tile_pixels ? numel - first : tile_pixels);
      load_tile(args.x, first, count, C, args.pixels, x);
      load_tile(args.params, first, count, rows.count(), args.pixels, params);
      S* loss = static_cast<S*>(args.loss) + first;
      for (int i = 0; i < count; i += lanes<V>) {
        const V value = tile_nll<V, C, pixelcnnpp, gradient>(x, params, joint, args.mixtures,
                                                             classes, i);
        store_partial(loss + i, value, count - i < lanes<V> ? count - i : lanes<V>);
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
      nll<S, 1, false, false>, nll<S, 1, false, true>, nll<S, 1, true, false>, nll<S, 1, true, true>,
      nll<S, 3, false, false>, nll<S, 3, false, true>, nll<S, 3, true, false>, nll<S, 3, true, true>};
  variants[variant](args);
  if (args.total) {
    const int64_t rows = args.total_over_batch ? 1 : args.batch;
    sum_rows(static_cast<const S*>(args.loss), rows, args.batch * args.pixels / (rows ? rows : 1),
             static_cast<S*>(args.total));
  }
}

}  // namespace
}  // namespace GMFAST_LEVEL

GMFAST_DEFINE_CPU_KERNEL(discretized_logistic_mixture_nll, LogisticMixtureNll) {
  args.compute() == DType::float64 ? nll_of<double>(args) : nll_of<float>(args);
}

}  // namespace gmfast
