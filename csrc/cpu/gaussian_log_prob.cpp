#include "../args/gaussian_log_prob.h"

#include "../math/gaussian_log_prob.h"
#include "rows.h"

namespace gmfast {
inline namespace GMFAST_LEVEL {
namespace {

// log_std and 1/std of a row; of one number, the latter is computed once.
template <class V>
class Deviation {
 public:
  Deviation(const RowOperand& log_std, RowPlace at) : log_std_(log_std, at) {
    if (log_std.data && log_std_.constant()) inverse_ = exp(-log_std_.value());
  }

  template <class Span>
  GMFAST_HD void load(int64_t i, Span span, V& log_std, V& inverse) const {
    log_std = log_std_.load(i, span);
    inverse = log_std_.constant() ? splat<V>(inverse_) : exp(-log_std);
  }

 private:
  RowReader<V> log_std_;
  Scalar<V> inverse_ = 1;
};

template <class S>
void forward(const GaussianLogProb& args) {
  using V = Native<S>;
  const double constant = gaussian_constant * double(args.elements);
  S* log_prob = static_cast<S*>(args.log_prob);
  // The base of a flow: with nothing to ask at each vector it is twice as fast.
  const DType own = is_single<V> ? DType::float32 : DType::float64;
  if (!args.mean.data && !args.log_std.data && args.z.dtype == own && args.z.inner_stride == 1) {
    return sum_samples<V>(args.shape, 1, constant, log_prob, [&](RowPlace at) {
      return [z = row_of<const S>(args.z, at)](int64_t i, auto span) {
        const V zero = splat<V>(0);
        return gaussian_log_prob(span.load(z + i), zero, zero, splat<V>(1));
      };
    });
  }
  sum_samples<V>(args.shape, 1, constant, log_prob, [&](RowPlace at) {
    return [z = RowReader<V>(args.z, at), mean = RowReader<V>(args.mean, at),
            deviation = Deviation<V>(args.log_std, at)](int64_t i, auto span) {
      V log_std, inverse;
      deviation.load(i, span, log_std, inverse);
      return gaussian_log_prob(z.load(i, span), mean.load(i, span), log_std, inverse);
    };
  });
}

template <class S>
void backward(const GaussianLogProbBackward& args) {
  using V = Native<S>;
  const auto row = [&](RowPlace at) {
    return [z = RowReader<V>(args.z, at), mean = RowReader<V>(args.mean, at),
            deviation = Deviation<V>(args.log_std, at), to_z = RowWriter<V>(args.grad_z, at),
            to_mean = RowWriter<V>(args.grad_mean, at),
            to_log_std = RowWriter<V>(args.grad_log_std, at),
            grad = static_cast<const S*>(args.grad)[at.sample * args.grad_stride]](
               int64_t i, auto span, V(&terms)[2]) {
      V log_std, inverse, by_z;
      deviation.load(i, span, log_std, inverse);
      gaussian_log_prob_backward(splat<V>(grad), z.load(i, span), mean.load(i, span), inverse, by_z,
                                 terms[0], terms[1]);
      if (to_z) to_z.store(i, span, by_z);
      if (to_mean) to_mean.store(i, span, terms[0]);
      if (to_log_std) to_log_std.store(i, span, terms[1]);
    };
  };
  if (args.channel_mean.data || args.channel_log_std.data) {
    const int64_t channels = args.channels_inner ? args.shape.inner : args.shape.rows;
    Scratch<double> sums(2 * channels);
    sum_channels<V, 2>(args.shape, args.channels_inner, sums.get(), row);
    for (int64_t c = 0; c < channels; ++c) {
      if (args.channel_mean.data) write_channel(args.channel_mean, c, sums.get()[c]);
      if (args.channel_log_std.data) {
        write_channel(args.channel_log_std, c, sums.get()[channels + c]);
      }
    }
  } else {
    for_each_row<V>(args.shape, [&](RowPlace at) {
      return [values = row(at)](int64_t i, auto span) {
        V terms[2];
        values(i, span, terms);
      };
    });
  }
}

}  // namespace
}  // namespace GMFAST_LEVEL

GMFAST_DEFINE_CPU_KERNEL(gaussian_log_prob, GaussianLogProb) {
  args.compute == DType::float64 ? forward<double>(args) : forward<float>(args);
}

GMFAST_DEFINE_CPU_KERNEL(gaussian_log_prob_backward, GaussianLogProbBackward) {
  args.compute == DType::float64 ? backward<double>(args) : backward<float>(args);
}

}  // namespace gmfast
