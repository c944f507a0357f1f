#include "../args/discretized_gaussian_nll.h"
#include "../math/discretized_gaussian_nll.h"
#include "rows.h"

namespace gmfast {
namespace {

template <class S, class Args>
struct WithLevels {
  Args args;
  GaussianLevels<S> levels;
};

struct Forward {
  template <class S>
  GMFAST_DEVICE static void apply(const WithLevels<S, DiscretizedGaussianNLL>& all,
                                  const RowElement& at) {
    const DiscretizedGaussianNLL& args = all.args;
    const GaussianBin<S> bin =
        gaussian_bin<false>(args.exact, read_row<S>(args.x, at), read_row<S>(args.mean, at),
                            read_row<S>(args.log_scale, at), all.levels);
    write_row(args.nll, at, bin.nll);
  }
};

struct Backward {
  template <class S>
  GMFAST_DEVICE static void apply(const WithLevels<S, DiscretizedGaussianNLLBackward>& all,
                                  const RowElement& at) {
    const DiscretizedGaussianNLLBackward& args = all.args;
    const GaussianBin<S> bin =
        gaussian_bin<true>(args.exact, read_row<S>(args.x, at), read_row<S>(args.mean, at),
                           read_row<S>(args.log_scale, at), all.levels);
    const S grad = read_row<S>(args.grad, at), by_mean = grad * bin.by_mean;
    write_row(args.grad_x, at, -by_mean);
    write_row(args.grad_mean, at, by_mean);
    write_row(args.grad_log_scale, at, grad * bin.by_log_scale);
  }
};

template <class Row, class S, class Args>
void run(const Args& args, void* stream) {
  const WithLevels<S, Args> all{args, GaussianLevels<S>(args.num_classes)};
  launch_rows<Row, S>(all, args.shape, stream);
}

}  // namespace

void discretized_gaussian_nll_cuda(const DiscretizedGaussianNLL& args, void* stream) {
  args.compute == DType::float64 ? run<Forward, double>(args, stream)
                                 : run<Forward, float>(args, stream);
}

void discretized_gaussian_nll_backward_cuda(const DiscretizedGaussianNLLBackward& args,
                                            void* stream) {
  args.compute == DType::float64 ? run<Backward, double>(args, stream)
                                 : run<Backward, float>(args, stream);
}

}  // namespace gmfast
