#include "../args/causal_conv1d_update.h"

#include <optional>

#include "backend.h"
#include "layout.h"

namespace gmfast {
namespace {

using Optional = std::optional<Tensor>;

// x (B, C, L), state (rows, C, span), both of any strides. What is returned points into them.
CausalConv1dStreams streams_of(const Tensor& x, const Tensor& state, const Optional& state_indices,
                               int64_t taps, int64_t dilation) {
  CausalConv1dStreams streams;
  STD_TORCH_CHECK(x.dim() == 3 && taps >= 1 && dilation >= 1, "x: expected (B, C, L)");
  streams.batch = x.size(0);
  streams.channels = x.size(1);
  streams.length = x.size(2);
  streams.taps = taps;
  streams.dilation = dilation;
  streams.dtype = dtype_of(x);
  STD_TORCH_CHECK(state.dim() == 3, "state: expected (B, C, (k-1)*dilation)");
  check_like("state", state, x,
             {state_indices ? state.size(0) : x.size(0), x.size(1), streams.span()});
  streams.x = image_of(x);
  streams.state = image_of(state);
  streams.rows = state.size(0);
  if (state_indices) {
    const ScalarType type = state_indices->scalar_type();
    STD_TORCH_CHECK(state_indices->dim() == 1 && state_indices->size(0) == x.size(0) &&
                        (type == ScalarType::Long || type == ScalarType::Int) &&
                        state_indices->is_cuda() == x.is_cuda() &&
                        state_indices->get_device_index() == x.get_device_index(),
                    "state_indices: expected (B,), int32 or int64, on x's device");
    streams.row_of = state_indices->data_ptr();
    streams.row_is_int64 = type == ScalarType::Long;
    streams.row_stride = state_indices->stride(0);
    for (int64_t i = 0; !x.is_cuda() && i < streams.batch; ++i) {
      STD_TORCH_CHECK(streams.row(i) < streams.rows, "state_indices: expected less than ",
                      streams.rows, ", got ", streams.row(i));
    }
  }
  return streams;
}

Tensor update(const Tensor& x, const Tensor& state, const Tensor& weight, const Optional& bias,
              const Optional& state_indices, int64_t dilation, bool silu) {
  STD_TORCH_CHECK(x.dim() == 3 && weight.dim() == 3, "x, weight: expected (B, C, L), (C, 1, k)");
  check_like("weight", weight, x, {x.size(1), 1, weight.size(2)});
  CausalConv1dUpdate args;
  args.streams = streams_of(x, state, state_indices, weight.size(2), dilation);
  args.silu = silu;
  const Tensor weight_in = torch::stable::contiguous(weight);
  args.weight = weight_in.data_ptr();
  Tensor bias_in;
  if (bias) {
    check_like("bias", *bias, x, {x.size(1)});
    bias_in = torch::stable::contiguous(*bias);
    args.bias = bias_in.data_ptr();
  }
  Tensor y = empty_as(x, sizes_of(x));
  args.y = image_of(y);
  GMFAST_RUN(causal_conv1d_update, x, args);
  return y;
}

Tensor window(const Tensor& x, const Tensor& state, const Optional& state_indices, int64_t taps,
              int64_t dilation) {
  CausalConv1dWindow args;
  args.streams = streams_of(x, state, state_indices, taps, dilation);
  Tensor result = empty_contiguous(x, {x.size(0), x.size(2), x.size(1), taps}, x.scalar_type());
  args.window = result.data_ptr();
  GMFAST_RUN(causal_conv1d_window, x, args);
  return result;
}

}  // namespace
}  // namespace gmfast

STABLE_TORCH_LIBRARY_FRAGMENT(gmfast, m) {
  m.def(
      "causal_conv1d_update(Tensor x, Tensor(a!) state, Tensor weight, Tensor? bias, "
      "Tensor? state_indices, int dilation, bool silu) -> Tensor");
  m.def(
      "causal_conv1d_window(Tensor x, Tensor(a!) state, Tensor? state_indices, int taps, "
      "int dilation) -> Tensor");
}

GMFAST_REGISTER(m) {
  m.impl("causal_conv1d_update", TORCH_BOX(&gmfast::update));
  m.impl("causal_conv1d_window", TORCH_BOX(&gmfast::window));
}
