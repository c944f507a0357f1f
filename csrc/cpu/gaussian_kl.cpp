#include "../args/gaussian_kl.h"

#include "../math/gaussian_kl.h"
#include "rows.h"

namespace gmfast {
inline namespace GMFAST_LEVEL {
namespace {

// logvar2 of a row and inverse_std() of it; of one number, the latter is computed once.
template <class V>
class Second {
 public:
  Second(const RowOperand& logvar2, RowPlace at) : logvar_(logvar2, at) {
    if (logvar_.constant()) inverse_ = inverse_std(logvar_.value());
  }

  template <class Span>
  GMFAST_HD void load(int64_t i, Span span, V& logvar, V& inverse) const {
    logvar = logvar_.load(i, span);
    inverse = logvar_.constant() ? splat<V>(inverse_) : inverse_std(logvar);
  }

 private:
  RowReader<V> logvar_;
  Scalar<V> inverse_ = 1;
};

template <class S>
void forward(const GaussianKL& args) {
  using V = Native<S>;
  for_each_row<V>(args.shape, [&](RowPlace at) {
    return [mean1 = RowReader<V>(args.mean1, at), logvar1 = RowReader<V>(args.logvar1, at),
            mean2 = RowReader<V>(args.mean2, at), second = Second<V>(args.logvar2, at),
            kl = RowWriter<V>(args.kl, at)](int64_t i, auto span) {
      V logvar2, inverse;
      second.load(i, span, logvar2, inverse);
      const V apart = mean1.load(i, span) - mean2.load(i, span);
      kl.store(i, span, gaussian_kl(apart * inverse, logvar1.load(i, span) - logvar2));
    };
  });
}

template <class S>
void backward(const GaussianKLBackward& args) {
  using V = Native<S>;
  for_each_row<V>(args.shape, [&](RowPlace at) {
    return [grad = RowReader<V>(args.grad, at), mean1 = RowReader<V>(args.mean1, at),
            logvar1 = RowReader<V>(args.logvar1, at), mean2 = RowReader<V>(args.mean2, at),
            second = Second<V>(args.logvar2, at), to_mean1 = RowWriter<V>(args.grad_mean1, at),
            to_logvar1 = RowWriter<V>(args.grad_logvar1, at),
            to_mean2 = RowWriter<V>(args.grad_mean2, at),
            to_logvar2 = RowWriter<V>(args.grad_logvar2, at)](int64_t i, auto span) {
      V logvar2, inverse, by_mean1, by_logvar1, by_logvar2;
      second.load(i, span, logvar2, inverse);
      gaussian_kl_backward(grad.load(i, span), mean1.load(i, span), logvar1.load(i, span),
                           mean2.load(i, span), logvar2, inverse, by_mean1, by_logvar1, by_logvar2);
      if (to_mean1) to_mean1.store(i, span, by_mean1);
      if (to_logvar1) to_logvar1.store(i, span, by_logvar1);
      if (to_mean2) to_mean2.store(i, span, -by_mean1);
      if (to_logvar2) to_logvar2.store(i, span, by_logvar2);
    };
  });
}

}  // namespace
}  // namespace GMFAST_LEVEL

GMFAST_DEFINE_CPU_KERNEL(gaussian_kl, GaussianKL) {
  args.compute == DType::float64 ? forward<double>(args) : forward<float>(args);
}

GMFAST_DEFINE_CPU_KERNEL(gaussian_kl_backward, GaussianKLBackward) {
  args.compute == DType::float64 ? backward<double>(args) : backward<float>(args);
}

}  // namespace gmfast
