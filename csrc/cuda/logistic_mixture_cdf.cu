#include "../args/logistic_mixture_cdf.h"
#include "../math/logistic_mixture_cdf.h"
#include "launch.h"
#include "sample_sum.h"
#include "types.h"

namespace gmfast {
namespace {

// A thread takes an element and visits its parameters in the cache, twice forward (the largest
// logit, then the sums), once more for each of an inverse's steps, three times for the gradients.
// With 32 components in float32 an element is 392 bytes, at 4.3 TB/s 0.09 ns; about 2,600
// instructions take 132 multiprocessors 0.1 ns at 1.7 GHz, were each issue slot used.

GMFAST_DEVICE int64_t offset_of(const Grid& tensor, const MixtureShape& shape, int64_t sample,
                                int64_t element) {
  const int64_t row = shape.rows == 1 ? 0 : element / shape.columns;
  const int64_t column = element - row * shape.columns;
  return sample * tensor.batch_stride + row * tensor.row_stride + column * tensor.column_stride;
}

template <class S>
GMFAST_DEVICE S read(const Grid& tensor, int64_t offset) {
  S value = 0;
  with_type<S>(tensor.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    value = load_element<S>(static_cast<const T*>(tensor.data) + offset);
  });
  return value;
}

template <class S>
GMFAST_DEVICE void write(const Grid& tensor, int64_t offset, S value) {
  if (!tensor.data) return;
  with_type<S>(tensor.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    store_element(static_cast<T*>(tensor.data) + offset, value);
  });
}

// The parameters of one element, where they lie.
template <class S>
struct ElementMixture {
  const Grid &logits, &means, &log_scales;
  int64_t count, logits_offset, means_offset, log_scales_offset;
  S top = 0, largest_inverse_scale = 0;

  template <class Args>
  GMFAST_DEVICE ElementMixture(const Args& args, int64_t sample, int64_t element)
      : logits(args.logits),
        means(args.means),
        log_scales(args.log_scales),
        count(args.shape.components),
        logits_offset(offset_of(args.logits, args.shape, sample, element)),
        means_offset(offset_of(args.means, args.shape, sample, element)),
        log_scales_offset(offset_of(args.log_scales, args.shape, sample, element)) {
    S highest = raw_logit(0), least = log_scale(0);
    for (int64_t k = 1; k < count; ++k) {
      highest = max(highest, raw_logit(k));
      least = min(least, log_scale(k));
    }
    top = highest;
    largest_inverse_scale = exp(-least);
  }

  GMFAST_DEVICE S raw_logit(int64_t k) const {
    return read<S>(logits, logits_offset + k * logits.channel_stride);
  }
  GMFAST_DEVICE S logit(int64_t k) const { return raw_logit(k) - top; }
  GMFAST_DEVICE S weight(int64_t k) const { return exp_nonpositive(logit(k)); }
  GMFAST_DEVICE S mean(int64_t k) const {
    return read<S>(means, means_offset + k * means.channel_stride);
  }
  GMFAST_DEVICE S log_scale(int64_t k) const {
    return limited_log_scale(
        read<S>(log_scales, log_scales_offset + k * log_scales.channel_stride));
  }
  GMFAST_DEVICE S inverse_scale(int64_t k) const { return exp(-log_scale(k)); }
};

template <class S, bool inverse>
__global__ void __launch_bounds__(sample_sum_threads, 1)
    transform_kernel(LogisticMixtureCdf args, SampleSum sum) {
  const SampleShare share(sum);
  double partial = 0;
  for (int64_t element = share.first; element < share.end; element += share.step) {
    const int64_t index = share.sample * sum.length + element;
    const ElementMixture<S> mixture(args, share.sample, element);
    const S given = read<S>(args.x, offset_of(args.x, args.shape, share.sample, element));
    S data = given;
    MixturePoint<S> point;
    if constexpr (inverse) {
      data = solve(mixture, given, mixture.largest_inverse_scale, point);
    } else {
      point = evaluate(mixture, data, mixture.largest_inverse_scale);
    }
    const S y = inverse ? data : point.logit;
    const S log_derivative = inverse ? -point.log_derivative : point.log_derivative;
    write(args.y, offset_of(args.y, args.shape, share.sample, element), y);
    if (args.solution) static_cast<S*>(args.solution)[index] = y;
    if (args.log_derivative) static_cast<S*>(args.log_derivative)[index] = log_derivative;
    partial += double(log_derivative);
  }
  sum_of_sample(sum, share, partial, [&](double total) {
    if (args.log_det) static_cast<S*>(args.log_det)[share.sample] = S(total);
  });
}

constexpr int backward_threads = 128;

template <class S>
__global__ void __launch_bounds__(backward_threads)
    backward_kernel(LogisticMixtureCdfBackward args) {
  const int64_t index = block_index() * backward_threads + thread_index();
  if (index >= args.shape.numel()) return;
  const int64_t sample = index / args.shape.sample(),
                element = index - sample * args.shape.sample();
  const auto at = [&](const Grid& tensor) {
    return offset_of(tensor, args.shape, sample, element);
  };
  const ElementMixture<S> mixture(args, sample, element);
  const S x = read<S>(args.x, at(args.x));
  const S grad_y = args.grad_y.data ? read<S>(args.grad_y, at(args.grad_y)) : S(0);
  const S grad_log_derivative =
      args.grad_log_derivative.data
          ? read<S>(args.grad_log_derivative, at(args.grad_log_derivative))
          : S(0);
  // The terms of all components do not fit into registers: they are computed again.
  MixtureSums<S> sums;
  const MixturePoint<S> point = evaluate(mixture, x, mixture.largest_inverse_scale, sums,
                                         [](int64_t, const ComponentTerms<S>&, S, bool) {});
  const MixtureTerms<S> inverses{1 / sums.terms.cdf, 1 / sums.terms.survival,
                                 1 / sums.terms.density};
  const auto shares_of = [&](int64_t k, S& bend) {
    const S inverse_scale = mixture.inverse_scale(k);
    const LogisticAt<S> component = logistic_at(x, mixture.mean(k), inverse_scale);
    bend = bend_of(component, inverse_scale);
    const ComponentTerms<S> terms =
        sums.safe ? terms_of(component, mixture.weight(k), inverse_scale)
                  : scaled_terms(component,
                                 exponents_of(component, mixture.logit(k), mixture.log_scale(k)),
                                 sums.top);
    return MixtureTerms<S>{terms.cdf * inverses.cdf, terms.survival * inverses.survival,
                           terms.density() * inverses.density};
  };
  const MixtureGradient<S> gradient = gradient_of(point, grad_y, grad_log_derivative, args.inverse);
  write(args.grad_x, at(args.grad_x), gradient.x);
  const int64_t to_logits = at(args.grad_logits), to_means = at(args.grad_means),
                to_log_scales = at(args.grad_log_scales);
  for (int64_t k = 0; k < mixture.count; ++k) {
    S bend_of_k, by_logit, by_mean, by_log_scale;
    const MixtureTerms<S> shares = shares_of(k, bend_of_k);
    component_gradient(gradient, point, shares, bend_of_k, x - mixture.mean(k), by_logit, by_mean,
                       by_log_scale);
    write(args.grad_logits, to_logits + k * args.grad_logits.channel_stride, by_logit);
    write(args.grad_means, to_means + k * args.grad_means.channel_stride, by_mean);
    write(args.grad_log_scales, to_log_scales + k * args.grad_log_scales.channel_stride,
          by_log_scale);
  }
}

template <class S>
void transform(const LogisticMixtureCdf& args, void* stream) {
  SampleSum sum(args.shape.batch, args.shape.sample(), 1);
  sum.scratch = args.scratch;
  args.inverse ? launch_sample_sum(transform_kernel<S, true>, sum, stream, args)
               : launch_sample_sum(transform_kernel<S, false>, sum, stream, args);
}

template <class S>
void backward(const LogisticMixtureCdfBackward& args, void* stream) {
  launch(backward_kernel<S>, ceil_div(args.shape.numel(), backward_threads), backward_threads, 0,
         stream, args);
}

}  // namespace

void logistic_mixture_cdf_cuda(const LogisticMixtureCdf& args, void* stream) {
  args.compute() == DType::float64 ? transform<double>(args, stream)
                                   : transform<float>(args, stream);
}

void logistic_mixture_cdf_backward_cuda(const LogisticMixtureCdfBackward& args, void* stream) {
  args.compute() == DType::float64 ? backward<double>(args, stream) : backward<float>(args, stream);
}

}  // namespace gmfast
