// The logistic-mixture transform's kernels: see test_logistic_mixture_cdf.py.
#include "../../csrc/cuda/logistic_mixture_cdf.cu"

#include "driver.h"

using namespace gmfast;

namespace {

template <class Args>
void take_shape(Cases& cases, Args& args) {
  args.shape.batch = cases.integer();
  args.shape.rows = cases.integer();
  args.shape.columns = cases.integer();
  args.shape.components = cases.integer();
  args.inverse = cases.integer();
}

template <class Args>
void take_inputs(Cases& cases, Args& args) {
  args.x = cases.grid();
  args.logits = cases.grid();
  args.means = cases.grid();
  args.log_scales = cases.grid();
}

void run_transform(Cases& cases) {
  LogisticMixtureCdf args{};
  take_shape(cases, args);
  take_inputs(cases, args);
  args.y = cases.grid();
  args.solution = cases.memory();
  args.log_derivative = cases.memory();
  args.log_det = cases.memory();
  std::vector<double> scratch(
      SampleSum(args.shape.batch, args.shape.sample(), 1).scratch_bytes() / 8, -1);
  args.scratch = scratch.data();
  logistic_mixture_cdf_cuda(args, nullptr);
}

void run_backward(Cases& cases) {
  LogisticMixtureCdfBackward args{};
  take_shape(cases, args);
  take_inputs(cases, args);
  args.grad_y = cases.grid();
  args.grad_log_derivative = cases.grid();
  args.grad_x = cases.grid();
  args.grad_logits = cases.grid();
  args.grad_means = cases.grid();
  args.grad_log_scales = cases.grid();
  logistic_mixture_cdf_backward_cuda(args, nullptr);
}

}  // namespace

void run_case(Cases& cases) { cases.integer() == 0 ? run_transform(cases) : run_backward(cases); }
