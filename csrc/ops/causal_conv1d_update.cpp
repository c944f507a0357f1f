#include "../args/causal_conv1d_update.h"

#include <optional>

#include "backend.h"
#include "layout.h"

namespace gmfast {
namespace {

using Optional = std::optional<Tensor>;

// x (B, C, L), state (rows, C, N), both of any strides. What is returned points into them.
CausalConv1dStreams streams_of(const Tensor& x, const Tensor& state, const Optional& state_indices,
                               const Optional& cache_seqlens, int64_t taps, int64_t dilation) {
  CausalConv1dStreams streams;
  STD_TORCH_CHECK(x.dim() == 3 && taps >= 1 && dilation >= 1, "x: expected (B, C, L)");
  streams.batch = x.size(0);
  streams.channels = x.size(1);
  streams.length = x.size(2);
  streams.taps = taps;
  streams.dilation = dilation;
  streams.dtype = dtype_of(x);
  STD_TORCH_CHECK(state.dim() == 3 && state.size(2) >= streams.span(),
                  "state: expected (B, C, (k-1)*dilation or more)");
  streams.entries = state.size(2);
  check_like("state", state, x,
             {state_indices ? state.size(0) : x.size(0), x.size(1), streams.entries});
  streams.x = image_of(x);
  streams.state = image_of(state);
  streams.rows = state.size(0);
  if (state_indices) {
    streams.row_of = indices_of("state_indices", *state_indices, x, {streams.batch});
    for (int64_t i = 0; !x.is_cuda() && i < streams.batch; ++i) {
      STD_TORCH_CHECK(streams.row(i) < streams.rows, "state_indices: expected less than ",
                      streams.rows, ", got ", streams.row(i));
    }
  }
  if (cache_seqlens) {
    streams.seen = indices_of("cache_seqlens", *cache_seqlens, x, {streams.batch});
  }
  return streams;
}

Tensor update(const Tensor& x, const Tensor& state, const Tensor& weight, const Optional& bias,
              const Optional& state_indices, int64_t dilation, bool silu,
              const Optional& cache_seqlens) {
  STD_TORCH_CHECK(x.dim() == 3 && weight.dim() == 3, "x, weight: expected (B, C, L), (C, 1, k)");
  CausalConv1dUpdate args;
  args.streams = streams_of(x, state, state_indices, cache_seqlens, weight.size(2), dilation);
  args.silu = silu;
  const Tensor weight_in = torch::stable::contiguous(weight);
  args.weight = weights_of("weight", weight_in, x, {x.size(1), 1, weight.size(2)});
  Tensor bias_in;
  if (bias) {
    bias_in = torch::stable::contiguous(*bias);
    args.bias = weights_of("bias", bias_in, x, {x.size(1)});
  }
  Tensor y = empty_as(x, sizes_of(x));
  args.y = image_of(y);
  GMFAST_RUN(causal_conv1d_update, x, args);
  return y;
}

Tensor window(const Tensor& x, const Tensor& state, const Optional& state_indices, int64_t taps,
              int64_t dilation, const Optional& cache_seqlens) {
  CausalConv1dWindow args;
  args.streams = streams_of(x, state, state_indices, cache_seqlens, taps, dilation);
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
      "Tensor? state_indices, int dilation, bool silu, Tensor? cache_seqlens=None) -> Tensor");
  m.def(
      "causal_conv1d_window(Tensor x, Tensor(a!) state, Tensor? state_indices, int taps, "
      "int dilation, Tensor? cache_seqlens=None) -> Tensor");
}

GMFAST_REGISTER(m) {
  m.impl("causal_conv1d_update", TORCH_BOX(&gmfast::update));
  m.impl("causal_conv1d_window", TORCH_BOX(&gmfast::window));
}
