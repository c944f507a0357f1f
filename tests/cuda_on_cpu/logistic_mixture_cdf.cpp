// The logistic-mixture transform's kernels: see test_logistic_mixture_cdf.py.
#include "../../csrc/cuda/logistic_mixture_cdf.cu"

#include "driver.h"

using namespace gmfast;

namespace {

// Strides are of (batch, components, rows, columns).
MixtureTensor mixture_tensor(Cases& cases) {
  const Grid grid = cases.grid();
  MixtureTensor tensor;
  tensor.data = grid.data;
  tensor.dtype = grid.dtype;
  tensor.batch_stride = grid.batch_stride;
  tensor.component_stride = grid.channel_stride;
  tensor.row_stride = grid.row_stride;
  tensor.column_stride = grid.column_stride;
  return tensor;
}

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
  args.x = mixture_tensor(cases);
  args.logits = mixture_tensor(cases);
  args.means = mixture_tensor(cases);
  args.log_scales = mixture_tensor(cases);
}

void run_transform(Cases& cases) {
  LogisticMixtureCdf args{};
  take_shape(cases, args);
  take_inputs(cases, args);
  args.y = mixture_tensor(cases);
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
  args.grad_y = mixture_tensor(cases);
  args.grad_log_derivative = mixture_tensor(cases);
  args.grad_x = mixture_tensor(cases);
  args.grad_logits = mixture_tensor(cases);
  args.grad_means = mixture_tensor(cases);
  args.grad_log_scales = mixture_tensor(cases);
  logistic_mixture_cdf_backward_cuda(args, nullptr);
}

}  // namespace

void run_case(Cases& cases) { cases.integer() == 0 ? run_transform(cases) : run_backward(cases); }
