#include "../args/actnorm.h"

#include "../math/actnorm.h"
#include "rows.h"

namespace gmfast {
inline namespace GMFAST_LEVEL {
namespace {

// The channels' numbers side by side. Where channels are adjacent and few, and so are the pixels,
// the table holds them several times, and as many pixels are one row.
template <class S, class Args>
struct Table {
  int64_t period;  // channels, times the repetitions
  Scratch<S> memory;
  S *before, *scale, *after;

  explicit Table(const Args& args) : period(args.channels * repetitions(args)), memory(3 * period) {
    before = memory.get();
    scale = before + period;
    after = scale + period;
    for (int64_t c = 0; c < args.channels; ++c) {
      const ActNormChannel<S> channel(read_channel<S>(args.shift, c),
                                      read_channel<S>(args.log_scale, c), args.inverse);
      before[c] = channel.before;
      scale[c] = channel.scale;
      after[c] = channel.after;
    }
    for (int64_t i = args.channels; i < 3 * period; ++i) {
      if (i % period >= args.channels) before[i] = before[i - args.channels];
    }
  }

  static int64_t repetitions(const Args& args) {
    const bool fitting = args.channels_inner && args.adjoin && args.channels > 0;
    return fitting && args.channels < 256 ? 256 / args.channels : 1;
  }

  // Calls body(shape, first row's element) for the rows of one period, and for what they leave
  // over.
  template <class Body>
  void for_each_shape(const Args& args, const Body& body) const {
    if (period == args.channels) return body(args.shape, 0);
    const int64_t numel = args.shape.batch * args.shape.rows * args.shape.inner;
    const int64_t whole = numel / period;
    body(RowShape{1, whole, period}, 0);
    if (numel > whole * period) body(RowShape{1, 1, numel - whole * period}, whole * period);
  }
};

// The operand with its rows `period` elements apart, from element `first` on.
template <class Args>
RowOperand periodic(RowOperand operand, const Args& args, int64_t period, int64_t first) {
  if (period == args.channels || !operand.data) return operand;
  const int64_t size = element_size(operand.dtype);
  operand.data = static_cast<char*>(operand.data) + first * operand.inner_stride * size;
  operand.row_stride = period * operand.inner_stride;
  return operand;
}

// The numbers of a row's channel or of its channels.
template <class V>
struct RowChannels {
  const Scalar<V>* table;
  bool inner;
  Scalar<V> value;

  RowChannels(const Scalar<V>* table, int64_t row, bool inner)
      : table(table), inner(inner), value(inner ? Scalar<V>(0) : table[row]) {}
  template <class Span>
  GMFAST_HD V load(int64_t i, Span span) const {
    return inner ? span.load(table + i) : splat<V>(value);
  }
};

template <class S>
void forward(const ActNorm& args) {
  using V = Native<S>;
  const Table<S, ActNorm> table(args);
  table.for_each_shape(args, [&](const RowShape& shape, int64_t first) {
    const RowOperand x = periodic(args.x, args, table.period, first);
    const RowOperand y = periodic(args.y, args, table.period, first);
    const bool inner = args.channels_inner;
    for_each_row<V>(shape, [&](RowPlace at) {
      return [from = RowReader<V>(x, at), to = RowWriter<V>(y, at),
              before = RowChannels<V>(table.before, at.row, inner),
              scale = RowChannels<V>(table.scale, at.row, inner),
              after = RowChannels<V>(table.after, at.row, inner)](int64_t i, auto span) {
        to.store(i, span,
                 actnorm(from.load(i, span), before.load(i, span), scale.load(i, span),
                         after.load(i, span)));
      };
    });
  });
  double sum = 0;
  for (int64_t c = 0; c < args.channels; ++c) sum += read_channel<double>(args.log_scale, c);
  const S log_det = S((args.inverse ? -sum : sum) * double(args.pixels));
  for (int64_t b = 0; b < args.batch; ++b) static_cast<S*>(args.log_det)[b] = log_det;
}

template <class S>
void backward(const ActNormBackward& args) {
  using V = Native<S>;
  const Table<S, ActNormBackward> table(args);
  const int64_t channels = args.channels;
  Scratch<double> by_channel(4 * channels);
  double* totals = by_channel.get();
  for (int64_t i = 0; i < 2 * channels; ++i) totals[i] = 0;
  table.for_each_shape(args, [&](const RowShape& shape, int64_t first) {
    const RowOperand grad_y = periodic(args.grad_y, args, table.period, first);
    const RowOperand x = periodic(args.x, args, table.period, first);
    const RowOperand grad_x = periodic(args.grad_x, args, table.period, first);
    const bool inner = args.channels_inner;
    const auto row = [&](RowPlace at) {
      return
          [by_y = RowReader<V>(grad_y, at), from = RowReader<V>(x, at),
           to = RowWriter<V>(grad_x, at), before = RowChannels<V>(table.before, at.row, inner),
           scale = RowChannels<V>(table.scale, at.row, inner)](int64_t i, auto span, V(&terms)[2]) {
            V by_x;
            actnorm_backward(by_y.load(i, span), from.load(i, span), before.load(i, span),
                             scale.load(i, span), by_x, terms[0], terms[1]);
            if (to) to.store(i, span, by_x);
          };
    };
    if (args.grad_shift.data) {
      const int64_t of_shape = inner ? shape.inner : shape.rows;
      Scratch<double> sums(2 * of_shape);
      sum_channels<V, 2>(shape, inner, sums.get(), row);
      for (int64_t i = 0; i < of_shape; ++i) {
        totals[i % channels] += sums.get()[i];
        totals[channels + i % channels] += sums.get()[of_shape + i];
      }
    } else {
      for_each_row<V>(shape, [&](RowPlace at) {
        return [values = row(at)](int64_t i, auto span) {
          V terms[2];
          values(i, span, terms);
        };
      });
    }
  });
  if (!args.grad_shift.data) return;
  double by_log_det = 0;
  for (int64_t b = 0; args.grad_log_det && b < args.batch; ++b) {
    by_log_det += static_cast<const S*>(args.grad_log_det)[b * args.grad_log_det_stride];
  }
  for (int64_t c = 0; c < channels; ++c) {
    double grad_shift, grad_log_scale;
    actnorm_channel_gradients(totals[c], totals[channels + c], by_log_det * double(args.pixels),
                              double(table.scale[c]), args.inverse, grad_shift, grad_log_scale);
    write_channel(args.grad_shift, c, grad_shift);
    write_channel(args.grad_log_scale, c, grad_log_scale);
  }
}

}  // namespace
}  // namespace GMFAST_LEVEL

GMFAST_DEFINE_CPU_KERNEL(actnorm, ActNorm) {
  args.compute == DType::float64 ? forward<double>(args) : forward<float>(args);
}

GMFAST_DEFINE_CPU_KERNEL(actnorm_backward, ActNormBackward) {
  args.compute == DType::float64 ? backward<double>(args) : backward<float>(args);
}

}  // namespace gmfast
