#include "../args/dequantize_logit.h"

#include <cmath>

#include "../math/dequantize_logit.h"
#include "../math/random.h"
#include "rows.h"

namespace gmfast {
inline namespace GMFAST_LEVEL {
namespace {

template <class V>
__attribute__((noinline)) void draw(Stream stream, uint64_t first, Scalar<V>* out, int64_t count) {
  fill_uniform<V>(stream, first, out, count);
}

// A row of levels, integers or floating.
template <class V>
class LevelReader {
 public:
  LevelReader(const DequantizeLogitInputs& in, RowPlace at)
      : type_(in.x_type),
        integers_(in.x),
        at_(at),
        inner_(in.x.inner_stride),
        floating_(type_ == LevelType::floating ? in.x : RowOperand(), at) {}

  template <class Span>
  GMFAST_HD V load(int64_t i, Span span) const {
    switch (type_) {
      case LevelType::uint8:
        return load_as<uint8_t>(i, span);
      case LevelType::int16:
        return load_as<int16_t>(i, span);
      case LevelType::int32:
        return load_as<int32_t>(i, span);
      case LevelType::int64:
        return load_as<int64_t>(i, span);
      default:
        return floating_.load(i, span);
    }
  }

 private:
  template <class T, class Span>
  GMFAST_HD V load_as(int64_t i, Span span) const {
    const T* row = row_of<T>(integers_, at_);
    return inner_ ? span.load(row + i) : splat<V>(Scalar<V>(*row));
  }

  LevelType type_;
  RowOperand integers_;
  RowPlace at_;
  int64_t inner_;
  RowReader<V> floating_;
};

// A row of noise, given or drawn a part at a time.
template <class V>
class NoiseReader {
  using S = Scalar<V>;
  static constexpr int64_t part = 512;

 public:
  NoiseReader(const DequantizeLogitInputs& in, const LevelLogit<V>& logit, RowPlace at)
      : given_(in.noise, at),
        is_given_(in.noise.data),
        logit_(logit),
        inner_(in.shape.inner),
        first_(uint64_t(at.row) * uint64_t(in.shape.inner)) {
    if (in.seeds.data) stream_ = stream_of(in.seeds, at.sample, 0);
  }
  NoiseReader(const NoiseReader& other)
      : given_(other.given_),
        is_given_(other.is_given_),
        logit_(other.logit_),
        inner_(other.inner_),
        first_(other.first_),
        stream_(other.stream_) {}

  template <class Span>
  GMFAST_HD V load(int64_t i, Span span) const {
    if (is_given_) return given_.load(i, span);
    if (i < drawn_ || i >= drawn_ + part) {
      draw<V>(stream_, first_ + uint64_t(i), buffer_, inner_ - i < part ? inner_ - i : part);
      drawn_ = i;
    }
    return logit_.drawn(span.load(buffer_ + (i - drawn_)));
  }

 private:
  RowReader<V> given_;
  bool is_given_;
  const LevelLogit<V>& logit_;
  int64_t inner_;
  uint64_t first_;
  Stream stream_{};
  mutable int64_t drawn_ = -part;  // where the buffer starts
  mutable S buffer_[part];
};

template <class S>
void forward(const DequantizeLogit& args) {
  using V = Native<S>;
  const DequantizeLogitInputs& in = args.in;
  const LevelLogit<V> logit(in.alpha, in.num_levels);
  const double constant =
      (std::log1p(-2 * in.alpha) - std::log(in.num_levels)) * double(args.elements);
  S* log_det = static_cast<S*>(args.log_det);
  if (in.inverse) {
    sum_samples<V>(in.shape, 1, -constant, log_det, [&](RowPlace at) {
      const RowReader<V> x(in.x, at);
      const RowWriter<V> y(args.y, at);
      return [=, &logit, quantize = in.quantize](int64_t i, auto span) {
        V terms;
        const V value = logit.inverse(x.load(i, span), terms);
        y.store(i, span, quantize ? logit.quantize(value) : value);
        return terms;
      };
    });
  } else {
    sum_samples<V>(in.shape, 1, constant, log_det, [&](RowPlace at) {
      const LevelReader<V> x(in, at);
      const NoiseReader<V> noise(in, logit, at);
      const RowWriter<V> y(args.y, at);
      return [=, &logit](int64_t i, auto span) {
        V terms;
        y.store(i, span, logit.forward(x.load(i, span), noise.load(i, span), terms));
        return terms;
      };
    });
  }
}

template <class S>
void backward(const DequantizeLogitBackward& args) {
  using V = Native<S>;
  const DequantizeLogitInputs& in = args.in;
  const LevelLogit<V> logit(in.alpha, in.num_levels);
  for_each_row<V>(in.shape, [&](RowPlace at) {
    const RowReader<V> grad_y(in.inverse && in.quantize ? RowOperand() : args.grad_y, at);
    const S* by_log_det = static_cast<const S*>(args.grad_log_det);
    const V grad_log_det =
        splat<V>(by_log_det ? by_log_det[at.sample * args.grad_log_det_stride] : S(0));
    const LevelReader<V> x(in, at);
    const NoiseReader<V> noise(in, logit, at);
    const RowWriter<V> grad_x(args.grad_x, at), grad_noise(args.grad_noise, at);
    return [=, &logit, inverse = in.inverse](int64_t i, auto span) {
      const V by_y = grad_y.load(i, span), value = x.load(i, span);
      const V grad = inverse ? logit.inverse_backward(by_y, grad_log_det, value)
                             : logit.backward(by_y, grad_log_det, value, noise.load(i, span));
      if (grad_x) grad_x.store(i, span, grad);
      if (grad_noise) grad_noise.store(i, span, grad);
    };
  });
}

}  // namespace
}  // namespace GMFAST_LEVEL

GMFAST_DEFINE_CPU_KERNEL(dequantize_logit, DequantizeLogit) {
  args.in.compute == DType::float64 ? forward<double>(args) : forward<float>(args);
}

GMFAST_DEFINE_CPU_KERNEL(dequantize_logit_backward, DequantizeLogitBackward) {
  args.in.compute == DType::float64 ? backward<double>(args) : backward<float>(args);
}

}  // namespace gmfast
