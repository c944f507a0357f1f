#include "../args/discretized_gaussian_nll.h"

#include "../math/discretized_gaussian_nll.h"
#include "rows.h"

namespace gmfast {
inline namespace GMFAST_LEVEL {
namespace {

template <class S>
void forward(const DiscretizedGaussianNLL& args) {
  using V = Native<S>;
  const GaussianLevels<V> levels(args.num_classes);
  for_each_row<V>(args.shape, [&](RowPlace at) {
    return [x = RowReader<V>(args.x, at), mean = RowReader<V>(args.mean, at),
            log_scale = RowReader<V>(args.log_scale, at), nll = RowWriter<V>(args.nll, at), &levels,
            exact = args.exact](int64_t i, auto span) {
      const GaussianBin<V> bin = gaussian_bin<false>(exact, x.load(i, span), mean.load(i, span),
                                                     log_scale.load(i, span), levels);
      nll.store(i, span, bin.nll);
    };
  });
}

template <class S>
void backward(const DiscretizedGaussianNLLBackward& args) {
  using V = Native<S>;
  const GaussianLevels<V> levels(args.num_classes);
  for_each_row<V>(args.shape, [&](RowPlace at) {
    return [grad = RowReader<V>(args.grad, at), x = RowReader<V>(args.x, at),
            mean = RowReader<V>(args.mean, at), log_scale = RowReader<V>(args.log_scale, at),
            to_x = RowWriter<V>(args.grad_x, at), to_mean = RowWriter<V>(args.grad_mean, at),
            to_log_scale = RowWriter<V>(args.grad_log_scale, at), &levels,
            exact = args.exact](int64_t i, auto span) {
      const GaussianBin<V> bin = gaussian_bin<true>(exact, x.load(i, span), mean.load(i, span),
                                                    log_scale.load(i, span), levels);
      const V by = grad.load(i, span), by_mean = by * bin.by_mean;
      if (to_x) to_x.store(i, span, -by_mean);
      if (to_mean) to_mean.store(i, span, by_mean);
      if (to_log_scale) to_log_scale.store(i, span, by * bin.by_log_scale);
    };
  });
}

}  // namespace
}  // namespace GMFAST_LEVEL

GMFAST_DEFINE_CPU_KERNEL(discretized_gaussian_nll, DiscretizedGaussianNLL) {
  args.compute == DType::float64 ? forward<double>(args) : forward<float>(args);
}

GMFAST_DEFINE_CPU_KERNEL(discretized_gaussian_nll_backward, DiscretizedGaussianNLLBackward) {
  args.compute == DType::float64 ? backward<double>(args) : backward<float>(args);
}

}  // namespace gmfast
