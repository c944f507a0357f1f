#include "../args/actnorm.h"
#include "../math/actnorm.h"
#include "rows.h"

namespace gmfast {
namespace {

template <class S, class Args>
GMFAST_DEVICE ActNormChannel<S> channel_of(const Args& args, int64_t c) {
  return ActNormChannel<S>(read_channel<S>(args.shift, c), read_channel<S>(args.log_scale, c),
                           args.inverse);
}

// An element moves twice its size. The first block makes the log-determinant as well.
template <class S>
__global__ void __launch_bounds__(row_threads)
    forward_kernel(ActNorm args, int64_t blocks_of_sample) {
  if (block_index() == 0) {
    double partial = 0;
    for (int64_t c = thread_index(); c < args.channels; c += row_threads) {
      partial += read_channel<double>(args.log_scale, c);
    }
    const double sum = block_sum<row_threads>(partial) * double(args.pixels);
    for (int64_t b = thread_index(); b < args.batch; b += row_threads) {
      static_cast<S*>(args.log_det)[b] = S(args.inverse ? -sum : sum);
    }
  }
  if (blocks_of_sample == 0) return;
  const int64_t sample = block_index() / blocks_of_sample;
  const int64_t first =
      (block_index() - sample * blocks_of_sample) * (row_threads * elements_of_thread);
  GMFAST_UNROLL
  for (int u = 0; u < elements_of_thread; ++u) {
    const int64_t index = first + u * row_threads + thread_index();
    if (index >= args.shape.rows * args.shape.inner) return;
    const RowElement at = element_of(args.shape, sample, index);
    const auto channel = channel_of<S>(args, args.channels_inner ? at.inner : at.row);
    write_row(args.y, at,
              actnorm(read_row<S>(args.x, at), channel.before, channel.scale, channel.after));
  }
}

template <class S>
void forward(const ActNorm& args, void* stream) {
  const int64_t blocks =
      ceil_div(args.shape.rows * args.shape.inner, row_threads * elements_of_thread);
  launch(forward_kernel<S>, args.batch * blocks > 0 ? args.batch * blocks : 1, row_threads, 0,
         stream, args, blocks);
}

struct Backward {
  template <class S>
  GMFAST_DEVICE static void apply(const ActNormBackward& args, const RowElement& at,
                                  S (&terms)[2]) {
    const auto channel = channel_of<S>(args, args.channels_inner ? at.inner : at.row);
    S grad_x;
    actnorm_backward(read_row<S>(args.grad_y, at), read_row<S>(args.x, at), channel.before,
                     channel.scale, grad_x, terms[0], terms[1]);
    write_row(args.grad_x, at, grad_x);
  }
  template <class S>
  GMFAST_DEVICE static void apply(const ActNormBackward& args, const RowElement& at) {
    S terms[2];
    apply<S>(args, at, terms);
  }

  // The gradient of log_det, summed.
  template <class S>
  GMFAST_DEVICE static double share(const ActNormBackward& args) {
    double partial = 0;
    for (int64_t b = thread_index(); args.grad_log_det && b < args.batch; b += row_threads) {
      partial += static_cast<const S*>(args.grad_log_det)[b * args.grad_log_det_stride];
    }
    return block_sum<row_threads>(partial) * double(args.pixels);
  }
  template <class S>
  GMFAST_DEVICE static void finish(const ActNormBackward& args, int64_t c, const double (&sums)[2],
                                   double by_log_det) {
    double grad_shift, grad_log_scale;
    actnorm_channel_gradients(sums[0], sums[1], by_log_det, double(channel_of<S>(args, c).scale),
                              args.inverse, grad_shift, grad_log_scale);
    write_channel(args.grad_shift, c, grad_shift);
    write_channel(args.grad_log_scale, c, grad_log_scale);
  }
};

template <class S>
void backward(const ActNormBackward& args, void* stream) {
  if (args.grad_shift.data) {
    launch_channel_sum<Backward, S>(args, args.shape, args.sum, stream);
  } else {
    launch_rows<Backward, S>(args, args.shape, stream);
  }
}

}  // namespace

void actnorm_cuda(const ActNorm& args, void* stream) {
  args.compute == DType::float64 ? forward<double>(args, stream) : forward<float>(args, stream);
}

void actnorm_backward_cuda(const ActNormBackward& args, void* stream) {
  args.compute == DType::float64 ? backward<double>(args, stream) : backward<float>(args, stream);
}

}  // namespace gmfast
