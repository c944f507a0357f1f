#include "../args/logistic_mixture_cdf.h"

#include "../common/parallel.h"
#include "../math/logistic_mixture_cdf.h"
#include "reduce.h"
#include "scratch.h"
#include "tile.h"

namespace gmfast {
inline namespace GMFAST_LEVEL {
namespace {

// Elements are numbered through the batch. body(an image of one row of one sample, its run).
template <class Body>
void for_each_row(const Grid& tensor, const MixtureShape& shape, int64_t first, int count,
                  const Body& body) {
  Image image;
  image.dtype = tensor.dtype;
  image.channel_stride = tensor.channel_stride;
  image.pixel_stride = tensor.column_stride;
  const int64_t size = element_size(tensor.dtype);
  for_each_run(first, count, shape.columns, [&](const Run& run) {
    const int64_t sample = run.sample / shape.rows, row = run.sample % shape.rows;
    image.data = static_cast<char*>(tensor.data) +
                 (sample * tensor.batch_stride + row * tensor.row_stride) * size;
    body(image, Run{0, run.pixel, run.start, run.count});
  });
}

// Lanes beyond `count` are zero, and so is what has no data.
template <class S>
void load_elements(const Grid& tensor, const MixtureShape& shape, int64_t first, int count,
                   int64_t components, Tile<S>& tile) {
  const int loaded = tensor.data ? count : 0;
  with_type(tensor.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    for_each_row(tensor, shape, first, loaded, [&](const Image& image, const Run& run) {
      copy_run<Copy::in, T>(image, run, components, tile);
    });
  });
  for (int64_t k = 0; loaded < tile_pixels && k < components; ++k) {
    for (int i = loaded; i < tile_pixels; ++i) tile.row(k)[i] = 0;
  }
}

template <class S>
void store_elements(const Grid& tensor, const MixtureShape& shape, int64_t first, int count,
                    int64_t components, Tile<S>& tile) {
  if (!tensor.data) return;
  with_type(tensor.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    for_each_row(tensor, shape, first, count, [&](const Image& image, const Run& run) {
      copy_run<Copy::out, T>(image, run, components, tile);
    });
  });
}

// Brings elements nearer, while others are computed: the components of an element are more streams
// than the hardware follows by itself.
template <bool for_writing>
void prefetch_elements(const Grid& tensor, const MixtureShape& shape, int64_t first, int count,
                       int64_t components) {
  if (!tensor.data || count <= 0) return;
  constexpr int line = 64;
  const int64_t size = element_size(tensor.dtype);
  for_each_row(tensor, shape, first, count, [&](const Image& image, const Run& run) {
    const auto fetch = [&](int64_t from, int64_t length) {
      const char* begin = static_cast<const char*>(image.data) + from * size;
      for (int64_t byte = 0; byte < length * size; byte += line) {
        prefetch_line<for_writing>(begin + byte);
      }
    };
    const int64_t pixel = run.pixel * image.pixel_stride;
    if (image.pixel_stride == 1) {
      for (int64_t k = 0; k < components; ++k) fetch(pixel + k * image.channel_stride, run.count);
    } else if (image.channel_stride == 1) {
      for (int i = 0; i < run.count; ++i) fetch(pixel + i * image.pixel_stride, components);
    }
  });
}

// A tile of parameters, and those of one vector of its elements as the formulas take them.
template <class V>
class Mixture {
  using S = Scalar<V>;

 public:
  const int64_t count;

  explicit Mixture(int64_t components)
      : count(components),
        logits_(components),
        means_(components),
        log_scales_(components),
        derived_(2 * components * lanes<V>) {}

  template <class Args>
  void load(const Args& args, int64_t first, int elements) {
    load_elements(args.logits, args.shape, first, elements, count, logits_);
    load_elements(args.means, args.shape, first, elements, count, means_);
    load_elements(args.log_scales, args.shape, first, elements, count, log_scales_);
  }

  // Parameters of as many elements as V has lanes, of which there may be fewer or none.
  template <class Args>
  void prefetch(const Args& args, int64_t first, int64_t numel) const {
    const int elements = int(numel - first < lanes<V> ? numel - first : lanes<V>);
    for (const Grid* t : {&args.logits, &args.means, &args.log_scales}) {
      prefetch_elements<false>(*t, args.shape, first, elements, count);
    }
  }
  void prefetch_gradients(const LogisticMixtureCdfBackward& args, int64_t first,
                          int64_t numel) const {
    const int elements = int(numel - first < lanes<V> ? numel - first : lanes<V>);
    for (const Grid* t : {&args.grad_logits, &args.grad_means, &args.grad_log_scales}) {
      prefetch_elements<true>(*t, args.shape, first, elements, count);
    }
  }

  // Turns to lanes i.. of the tile; returns the largest inverse scale.
  V turn_to(int i) {
    lane_ = i;
    V top = load_row(logits_, 0), largest = splat<V>(0);
    for (int64_t k = 1; k < count; ++k) top = max(top, load_row(logits_, k));
    for (int64_t k = 0; k < count; ++k) {
      const V logit = load_row(logits_, k) - top;
      const V log_scale = limited_log_scale(load_row(log_scales_, k));
      const V inverse = exp(-log_scale);
      gmfast::store(logits_.row(k) + i, logit);
      gmfast::store(log_scales_.row(k) + i, log_scale);
      gmfast::store(derived(k), exp_nonpositive(logit));
      gmfast::store(derived(count + k), inverse);
      largest = max(largest, inverse);
    }
    return largest;
  }

  V logit(int64_t k) const { return load_row(logits_, k); }
  V mean(int64_t k) const { return load_row(means_, k); }
  V log_scale(int64_t k) const { return load_row(log_scales_, k); }
  V weight(int64_t k) const { return gmfast::load<V>(derived(k)); }
  V inverse_scale(int64_t k) const { return gmfast::load<V>(derived(count + k)); }

  // Component k's gradients, in the place of its parameters.
  void replace(int64_t k, V logit, V mean, V log_scale) {
    gmfast::store(logits_.row(k) + lane_, logit);
    gmfast::store(means_.row(k) + lane_, mean);
    gmfast::store(log_scales_.row(k) + lane_, log_scale);
  }
  void store(const LogisticMixtureCdfBackward& args, int64_t first, int elements) {
    store_elements(args.grad_logits, args.shape, first, elements, count, logits_);
    store_elements(args.grad_means, args.shape, first, elements, count, means_);
    store_elements(args.grad_log_scales, args.shape, first, elements, count, log_scales_);
  }

 private:
  V load_row(const Tile<S>& tile, int64_t k) const {
    return gmfast::load<V>(const_cast<Tile<S>&>(tile).row(k) + lane_);
  }
  S* derived(int64_t row) const { return derived_.get() + row * lanes<V>; }

  Tile<S> logits_, means_, log_scales_;
  Scratch<S> derived_;  // weights, then inverse scales
  int lane_ = 0;
};

template <class Body>
void for_each_tile(const MixtureShape& shape, const Body& body) {
  const int64_t numel = shape.numel(), tiles = (numel + tile_pixels - 1) / tile_pixels;
  parallel_for(tiles, 1, [&](int64_t begin, int64_t end) { body(begin, end, numel); });
}

inline int elements_of(int64_t first, int64_t numel) {
  return int(numel - first < tile_pixels ? numel - first : tile_pixels);
}

template <class V>
void store_lanes(void* values, int64_t first, int i, int count, V value) {
  if (!values) return;
  Scalar<V>* to = static_cast<Scalar<V>*>(values) + first + i;
  count - i >= lanes<V> ? store(to, value) : store_partial(to, value, count - i);
}

template <class S>
void transform(const LogisticMixtureCdf& args) {
  using V = Native<S>;
  for_each_tile(args.shape, [&](int64_t begin, int64_t end, int64_t numel) {
    const bool ahead = worth_prefetching(3 * numel * args.shape.components * int64_t(sizeof(S)));
    Mixture<V> mixture(args.shape.components);
    Tile<S> x(1);
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t first = tile * tile_pixels;
      const int count = elements_of(first, numel);
      load_elements(args.x, args.shape, first, count, 1, x);
      mixture.load(args, first, count);
      for (int i = 0; i < count; i += lanes<V>) {
        if (ahead && tile + 1 < end) mixture.prefetch(args, first + tile_pixels + i, numel);
        const V largest = mixture.turn_to(i), given = load<V>(x.row(0) + i);
        V data = given;
        MixturePoint<V> point;
        if (args.inverse) {
          data = solve(mixture, given, largest, point);
        } else {
          point = evaluate(mixture, data, largest);
        }
        const V y = args.inverse ? data : point.logit;
        store(x.row(0) + i, y);
        store_lanes(args.solution, first, i, count, y);
        store_lanes(args.log_derivative, first, i, count,
                    args.inverse ? -point.log_derivative : point.log_derivative);
      }
      store_elements(args.y, args.shape, first, count, 1, x);
    }
  });
  if (args.log_det) {
    sum_rows(static_cast<const S*>(args.log_derivative), args.shape.batch, args.shape.sample(), 1,
             static_cast<S*>(args.log_det));
  }
}

// The gradients of lanes i.. of a tile, in the place of the parameters; returns that of x.
// `terms`: 4K vectors.
template <class V>
V gradients(Mixture<V>& mixture, V x, V grad_y, V grad_log_derivative, bool inverse,
            Scalar<V>* terms, int i) {
  const V largest = mixture.turn_to(i);
  const auto term = [&](int64_t k, int j) { return terms + (4 * k + j) * lanes<V>; };
  MixtureSums<V> sums;
  const MixturePoint<V> point =
      evaluate(mixture, x, largest, sums,
               [&](int64_t k, const ComponentTerms<V>& of_k, V bend, Mask<V> mask) {
                 const auto keep = [&](int j, V value) {
                   store(term(k, j), select<V>(mask, value, load<V>(term(k, j))));
                 };
                 keep(0, of_k.cdf);
                 keep(1, of_k.survival);
                 keep(2, of_k.density());
                 keep(3, bend);
               });
  const V one = splat<V>(1);
  const MixtureTerms<V> inverses{one / sums.terms.cdf, one / sums.terms.survival,
                                 one / sums.terms.density};
  const MixtureGradient<V> gradient = gradient_of(point, grad_y, grad_log_derivative, inverse);
  for (int64_t k = 0; k < mixture.count; ++k) {
    const MixtureTerms<V> shares{load<V>(term(k, 0)) * inverses.cdf,
                                 load<V>(term(k, 1)) * inverses.survival,
                                 load<V>(term(k, 2)) * inverses.density};
    V by_logit, by_mean, by_log_scale;
    component_gradient(gradient, point, shares, load<V>(term(k, 3)), x - mixture.mean(k), by_logit,
                       by_mean, by_log_scale);
    mixture.replace(k, by_logit, by_mean, by_log_scale);
  }
  return gradient.x;
}

template <class S>
void backward(const LogisticMixtureCdfBackward& args) {
  using V = Native<S>;
  for_each_tile(args.shape, [&](int64_t begin, int64_t end, int64_t numel) {
    const bool ahead = worth_prefetching(3 * numel * args.shape.components * int64_t(sizeof(S)));
    Mixture<V> mixture(args.shape.components);
    Tile<S> x(1), grad_y(1), grad_log_derivative(1);
    Scratch<S> terms(4 * args.shape.components * lanes<V>);
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t first = tile * tile_pixels;
      const int count = elements_of(first, numel);
      load_elements(args.x, args.shape, first, count, 1, x);
      load_elements(args.grad_y, args.shape, first, count, 1, grad_y);
      load_elements(args.grad_log_derivative, args.shape, first, count, 1, grad_log_derivative);
      mixture.load(args, first, count);
      for (int i = 0; i < count; i += lanes<V>) {
        if (ahead && tile + 1 < end) {
          mixture.prefetch(args, first + tile_pixels + i, numel);
          mixture.prefetch_gradients(args, first + tile_pixels + i, numel);
        }
        const V grad_x =
            gradients(mixture, load<V>(x.row(0) + i), load<V>(grad_y.row(0) + i),
                      load<V>(grad_log_derivative.row(0) + i), args.inverse, terms.get(), i);
        store(x.row(0) + i, grad_x);
      }
      store_elements(args.grad_x, args.shape, first, count, 1, x);
      mixture.store(args, first, count);
    }
  });
}

}  // namespace
}  // namespace GMFAST_LEVEL

GMFAST_DEFINE_CPU_KERNEL(logistic_mixture_cdf, LogisticMixtureCdf) {
  args.compute() == DType::float64 ? transform<double>(args) : transform<float>(args);
}

GMFAST_DEFINE_CPU_KERNEL(logistic_mixture_cdf_backward, LogisticMixtureCdfBackward) {
  args.compute() == DType::float64 ? backward<double>(args) : backward<float>(args);
}

}  // namespace gmfast
