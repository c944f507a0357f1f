#include "../args/gaussian_kl.h"
#include "../math/gaussian_kl.h"
#include "rows.h"

namespace gmfast {
namespace {

struct Forward {
  template <class S>
  GMFAST_DEVICE static void apply(const GaussianKL& args, const RowElement& at) {
    const S logvar2 = read_row<S>(args.logvar2, at);
    const S apart = read_row<S>(args.mean1, at) - read_row<S>(args.mean2, at);
    write_row(args.kl, at,
              gaussian_kl(apart * inverse_std(logvar2), read_row<S>(args.logvar1, at) - logvar2));
  }
};

struct Backward {
  template <class S>
  GMFAST_DEVICE static void apply(const GaussianKLBackward& args, const RowElement& at) {
    const S logvar2 = read_row<S>(args.logvar2, at);
    S by_mean1, by_logvar1, by_logvar2;
    gaussian_kl_backward(read_row<S>(args.grad, at), read_row<S>(args.mean1, at),
                         read_row<S>(args.logvar1, at), read_row<S>(args.mean2, at), logvar2,
                         inverse_std(logvar2), by_mean1, by_logvar1, by_logvar2);
    write_row(args.grad_mean1, at, by_mean1);
    write_row(args.grad_logvar1, at, by_logvar1);
    write_row(args.grad_mean2, at, -by_mean1);
    write_row(args.grad_logvar2, at, by_logvar2);
  }
};

}  // namespace

void gaussian_kl_cuda(const GaussianKL& args, void* stream) {
  args.compute == DType::float64 ? launch_rows<Forward, double>(args, args.shape, stream)
                                 : launch_rows<Forward, float>(args, args.shape, stream);
}

void gaussian_kl_backward_cuda(const GaussianKLBackward& args, void* stream) {
  args.compute == DType::float64 ? launch_rows<Backward, double>(args, args.shape, stream)
                                 : launch_rows<Backward, float>(args, args.shape, stream);
}

}  // namespace gmfast
