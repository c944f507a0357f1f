#include <cmath>

#include "../args/dequantize_logit.h"
#include "../math/dequantize_logit.h"
#include "../math/random.h"
#include "rows.h"
#include "sample_sum.h"

namespace gmfast {
namespace {

template <class S>
GMFAST_DEVICE S read_level(const DequantizeLogitInputs& in, const RowElement& at) {
  const int64_t offset = offset_of(in.x, at);
  switch (in.x_type) {
    case LevelType::uint8:
      return S(static_cast<const uint8_t*>(in.x.data)[offset]);
    case LevelType::int16:
      return S(static_cast<const int16_t*>(in.x.data)[offset]);
    case LevelType::int32:
      return S(static_cast<const int32_t*>(in.x.data)[offset]);
    case LevelType::int64:
      return S(static_cast<const int64_t*>(in.x.data)[offset]);
    default:
      return read_row<S>(in.x, at);
  }
}

// Where noise is drawn, an item of a sample is a block of it.
template <class S>
__global__ void __launch_bounds__(sample_sum_threads)
    forward_kernel(DequantizeLogit args, LevelLogit<S> logit, double constant, SampleSum sum) {
  const SampleShare share(sum);
  const DequantizeLogitInputs& in = args.in;
  double partial = 0;
  S terms = 0;
  if (in.seeds.data) {
    const Stream stream = stream_of(in.seeds, share.sample, 0);
    for (int64_t item = share.first; item < share.end; item += share.step) {
      const Numbers<S> numbers = uniforms<S>(stream, uint64_t(item));
      GMFAST_UNROLL
      for (int slot = 0; slot < numbers_per_block<S>; ++slot) {
        const int64_t index = item / 16 * noise_tile<S> + slot * 16 + item % 16;
        if (index >= args.elements) break;
        const RowElement at = element_of(in.shape, share.sample, index);
        write_row(args.y, at,
                  logit.forward(read_level<S>(in, at), logit.drawn(numbers.value[slot]), terms));
        partial += terms;
      }
    }
  } else {
    for (int64_t item = share.first; item < share.end; item += share.step) {
      const RowElement at = element_of(in.shape, share.sample, item);
      S y;
      if (in.inverse) {
        y = logit.inverse(read_row<S>(in.x, at), terms);
        if (in.quantize) y = logit.quantize(y);
      } else {
        y = logit.forward(read_level<S>(in, at), read_row<S>(in.noise, at), terms);
      }
      write_row(args.y, at, y);
      partial += terms;
    }
  }
  sum_of_sample(sum, share, partial, [&](double total) {
    static_cast<S*>(args.log_det)[share.sample] = S(total + constant);
  });
}

template <class S>
void forward(const DequantizeLogit& args, void* stream) {
  const DequantizeLogitInputs& in = args.in;
  const double constant =
      (std::log1p(-2 * in.alpha) - std::log(in.num_levels)) * double(args.elements);
  launch_sample_sum(forward_kernel<S>, args.sum, stream, args,
                    LevelLogit<S>(in.alpha, in.num_levels), in.inverse ? -constant : constant);
}

template <class S>
struct BackwardArgs {
  DequantizeLogitBackward args;
  LevelLogit<S> logit;
};

struct Backward {
  template <class S>
  GMFAST_DEVICE static void apply(const BackwardArgs<S>& all, const RowElement& at) {
    const DequantizeLogitBackward& args = all.args;
    const DequantizeLogitInputs& in = args.in;
    const S by_log_det =
        args.grad_log_det
            ? static_cast<const S*>(args.grad_log_det)[at.sample * args.grad_log_det_stride]
            : S(0);
    S grad;
    if (in.inverse) {
      const S by_y = in.quantize ? S(0) : read_row<S>(args.grad_y, at);
      grad = all.logit.inverse_backward(by_y, by_log_det, read_row<S>(in.x, at));
    } else {
      S noise;
      if (in.seeds.data) {
        const uint64_t index = uint64_t(at.row) * uint64_t(in.shape.inner) + uint64_t(at.inner);
        noise = all.logit.drawn(uniform_at<S>(stream_of(in.seeds, at.sample, 0), index));
      } else {
        noise = read_row<S>(in.noise, at);
      }
      grad = all.logit.backward(read_row<S>(args.grad_y, at), by_log_det, read_level<S>(in, at),
                                noise);
    }
    write_row(args.grad_x, at, grad);
    write_row(args.grad_noise, at, grad);
  }
};

template <class S>
void backward(const DequantizeLogitBackward& args, void* stream) {
  const BackwardArgs<S> all{args, LevelLogit<S>(args.in.alpha, args.in.num_levels)};
  launch_rows<Backward, S>(all, args.in.shape, stream);
}

}  // namespace

void dequantize_logit_cuda(const DequantizeLogit& args, void* stream) {
  args.in.compute == DType::float64 ? forward<double>(args, stream) : forward<float>(args, stream);
}

void dequantize_logit_backward_cuda(const DequantizeLogitBackward& args, void* stream) {
  args.in.compute == DType::float64 ? backward<double>(args, stream)
                                    : backward<float>(args, stream);
}

}  // namespace gmfast
