// The causal convolution's kernels, all at once, and its updates': see test_causal_conv1d.py.
#include "../../csrc/cuda/causal_conv1d.cu"

#include "../../csrc/cuda/causal_conv1d_update.cu"
#include "driver.h"

using namespace gmfast;

namespace {

Weights weights(Cases& cases) {
  void* data = cases.memory();
  return {data, data && cases.integer()};
}

// (batch, columns), contiguous.
Indices indices(Cases& cases, int64_t columns = 1) {
  const void* data = cases.memory();
  return {data, data && cases.integer(), columns, 1};
}

void run_pass(Cases& cases) {
  CausalConv1dBackward backward;
  CausalConv1d& args = backward.forward;
  args.batch = cases.integer();
  args.channels = cases.integer();
  args.length = cases.integer();
  args.taps = cases.integer();
  args.dilation = cases.integer();
  args.silu = cases.integer();
  args.channels_inner = cases.integer();
  args.x = cases.image();
  args.dtype = args.x.dtype;
  args.initial_state = cases.image();
  args.weight = weights(cases);
  args.bias = weights(cases);
  args.seq_idx = indices(cases, args.length);
  args.lengths = indices(cases);
  args.y = cases.image();
  causal_conv1d_cuda(args, nullptr);

  args.y = cases.image();
  backward.grad_x = cases.image();
  backward.grad_state = cases.image();
  backward.grad_weight = weights(cases);
  backward.grad_bias = weights(cases);
  std::vector<char> partial_sums(backward.rows() * backward.columns() *
                                 (args.dtype == DType::float64 ? 8 : 4));
  if (backward.grad_weight.data) backward.partial_sums = partial_sums.data();
  causal_conv1d_backward_cuda(backward, nullptr);
}

void run_update(Cases& cases) {
  CausalConv1dStreams streams;
  streams.batch = cases.integer();
  streams.channels = cases.integer();
  streams.length = cases.integer();
  streams.taps = cases.integer();
  streams.dilation = cases.integer();
  const bool silu = cases.integer();
  streams.rows = cases.integer();
  streams.row_of = indices(cases);
  streams.seen = indices(cases);
  streams.entries = cases.integer();
  streams.x = cases.image();
  streams.dtype = streams.x.dtype;
  streams.state = cases.image();
  const Image window_state = cases.image();
  CausalConv1dUpdate update{streams, silu, weights(cases), weights(cases), cases.image()};
  causal_conv1d_update_cuda(update, nullptr);
  streams.state = window_state;
  causal_conv1d_window_cuda({streams, cases.memory()}, nullptr);
}

}  // namespace

void run_case(Cases& cases) { cases.integer() == 0 ? run_pass(cases) : run_update(cases); }
