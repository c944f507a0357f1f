// The kernels of gaussian_kl: see test_rows.py.
#include "../../csrc/cuda/gaussian_kl.cu"

#include "rows.h"

using namespace gmfast;

namespace {

template <class Args>
void describe(Args& args, Cases& cases) {
  args.shape = row_shape(cases);
  args.compute = DType(cases.integer());
  args.mean1 = row_operand(cases);
  args.logvar1 = row_operand(cases);
  args.mean2 = row_operand(cases);
  args.logvar2 = row_operand(cases);
}

void forward(Cases& cases) {
  GaussianKL args{};
  describe(args, cases);
  args.kl = row_operand(cases);
  gaussian_kl_cuda(args, nullptr);
}

void backward(Cases& cases) {
  GaussianKLBackward args{};
  describe(args, cases);
  args.grad = row_operand(cases);
  args.grad_mean1 = row_operand(cases);
  args.grad_logvar1 = row_operand(cases);
  args.grad_mean2 = row_operand(cases);
  args.grad_logvar2 = row_operand(cases);
  gaussian_kl_backward_cuda(args, nullptr);
}

}  // namespace

void run_case(Cases& cases) { cases.integer() == 0 ? ::forward(cases) : ::backward(cases); }
