#include "../args/gaussian_log_prob.h"
#include "../math/gaussian_log_prob.h"
#include "rows.h"
#include "sample_sum.h"

namespace gmfast {
namespace {

template <class S>
__global__ void __launch_bounds__(sample_sum_threads)
    forward_kernel(GaussianLogProb args, SampleSum sum) {
  const SampleShare share(sum);
  double partial = 0;
  GMFAST_UNROLL_BY(4)
  for (int64_t index = share.first; index < share.end; index += share.step) {
    const RowElement at = element_of(args.shape, share.sample, index);
    const S log_std = read_row<S>(args.log_std, at);
    partial += gaussian_log_prob(read_row<S>(args.z, at), read_row<S>(args.mean, at), log_std,
                                 exp(-log_std));
  }
  sum_of_sample(sum, share, partial, [&](double total) {
    static_cast<S*>(args.log_prob)[share.sample] =
        S(total + gaussian_constant * double(args.elements));
  });
}

struct Backward {
  template <class S>
  GMFAST_DEVICE static void apply(const GaussianLogProbBackward& args, const RowElement& at,
                                  S (&terms)[2]) {
    const S grad = static_cast<const S*>(args.grad)[at.sample * args.grad_stride];
    S grad_z;
    gaussian_log_prob_backward(grad, read_row<S>(args.z, at), read_row<S>(args.mean, at),
                               exp(-read_row<S>(args.log_std, at)), grad_z, terms[0], terms[1]);
    write_row(args.grad_z, at, grad_z);
    write_row(args.grad_mean, at, terms[0]);
    write_row(args.grad_log_std, at, terms[1]);
  }
  template <class S>
  GMFAST_DEVICE static void apply(const GaussianLogProbBackward& args, const RowElement& at) {
    S terms[2];
    apply<S>(args, at, terms);
  }

  template <class S>
  GMFAST_DEVICE static int share(const GaussianLogProbBackward&) {
    return 0;
  }
  template <class S>
  GMFAST_DEVICE static void finish(const GaussianLogProbBackward& args, int64_t c,
                                   const double (&sums)[2], int) {
    write_channel(args.channel_mean, c, sums[0]);
    write_channel(args.channel_log_std, c, sums[1]);
  }
};

template <class S>
void backward(const GaussianLogProbBackward& args, void* stream) {
  if (args.channel_mean.data || args.channel_log_std.data) {
    launch_channel_sum<Backward, S>(args, args.shape, args.sum, stream);
  } else {
    launch_rows<Backward, S>(args, args.shape, stream);
  }
}

}  // namespace

void gaussian_log_prob_cuda(const GaussianLogProb& args, void* stream) {
  launch_sample_sum(args.compute == DType::float64 ? forward_kernel<double> : forward_kernel<float>,
                    args.sum, stream, args);
}

void gaussian_log_prob_backward_cuda(const GaussianLogProbBackward& args, void* stream) {
  args.compute == DType::float64 ? backward<double>(args, stream) : backward<float>(args, stream);
}

}  // namespace gmfast
