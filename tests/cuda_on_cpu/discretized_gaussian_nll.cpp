// The kernels of discretized_gaussian_nll: see test_rows.py.
#include "../../csrc/cuda/discretized_gaussian_nll.cu"

#include "rows.h"

using namespace gmfast;

namespace {

template <class Args>
void describe(Args& args, Cases& cases) {
  args.shape = row_shape(cases);
  args.compute = DType(cases.integer());
  args.num_classes = cases.integer();
  args.exact = cases.integer();
  args.x = row_operand(cases);
  args.mean = row_operand(cases);
  args.log_scale = row_operand(cases);
}

void forward(Cases& cases) {
  DiscretizedGaussianNLL args{};
  describe(args, cases);
  args.nll = row_operand(cases);
  discretized_gaussian_nll_cuda(args, nullptr);
}

void backward(Cases& cases) {
  DiscretizedGaussianNLLBackward args{};
  describe(args, cases);
  args.grad = row_operand(cases);
  args.grad_x = row_operand(cases);
  args.grad_mean = row_operand(cases);
  args.grad_log_scale = row_operand(cases);
  discretized_gaussian_nll_backward_cuda(args, nullptr);
}

}  // namespace

void run_case(Cases& cases) { cases.integer() == 0 ? ::forward(cases) : ::backward(cases); }
