#include "../args/causal_conv1d.h"

#include <optional>
#include <tuple>

#include "backend.h"
#include "layout.h"

namespace gmfast {
namespace {

using Optional = std::optional<Tensor>;

// The tensors of a call, laid out as the kernels take them, and alive as long as the arguments are.
struct Call {
  CausalConv1d args;
  Tensor x, weight, bias, initial_state;

  Call(const Tensor& x_in, const Tensor& weight_in, const Optional& bias_in,
       const Optional& state_in, int64_t dilation, bool silu, const Optional& seq_idx,
       const Optional& lengths) {
    STD_TORCH_CHECK(x_in.dim() == 3 && weight_in.dim() == 3 && weight_in.size(0) == x_in.size(1) &&
                        weight_in.size(1) == 1 && weight_in.size(2) >= 1 && dilation >= 1,
                    "x and weight: expected (B, C, T) and (C, 1, k)");
    args.batch = x_in.size(0);
    args.channels = x_in.size(1);
    args.length = x_in.size(2);
    args.taps = weight_in.size(2);
    args.dilation = dilation;
    args.silu = silu;
    args.channels_inner = channels_innermost(x_in);
    args.dtype = dtype_of(x_in);
    x = add("x", x_in, args.length, args.x);
    weight = torch::stable::contiguous(weight_in);
    args.weight = weights_of("weight", weight, x_in, {args.channels, 1, args.taps});
    if (bias_in) {
      bias = torch::stable::contiguous(*bias_in);
      args.bias = weights_of("bias", bias, x_in, {args.channels});
    }
    if (state_in) {
      initial_state = add("initial_state", *state_in, args.span(), args.initial_state);
    }
    if (seq_idx) {
      args.seq_idx = indices_of("seq_idx", *seq_idx, x_in, {args.batch, args.length});
    }
    if (lengths) args.lengths = indices_of("lengths", *lengths, x_in, {args.batch});
  }

  // A tensor (batch, channels, length) as the kernels see it; a copy where its elements do not
  // adjoin the way x's do.
  Tensor add(const char* name, Tensor tensor, int64_t length, Image& image) const {
    check_like(name, tensor, x.defined() ? x : tensor, {args.batch, args.channels, length});
    const int64_t inner = args.channels_inner ? 1 : 2;
    if (tensor.size(inner) > 1 && tensor.stride(inner) != 1) {
      const Sizes sizes = sizes_of(tensor);
      Tensor copy = empty_strided(tensor, sizes, dense_strides(sizes, args.channels_inner),
                                  tensor.scalar_type());
      torch::stable::copy_(copy, tensor);
      tensor = copy;
    }
    image = image_of(tensor);
    return tensor;
  }
};

Tensor forward(const Tensor& x, const Tensor& weight, const Optional& bias,
               const Optional& initial_state, int64_t dilation, bool silu, const Optional& seq_idx,
               const Optional& lengths) {
  Call call(x, weight, bias, initial_state, dilation, silu, seq_idx, lengths);
  Tensor y = empty_as(x, sizes_of(x));
  call.add("y", y, call.args.length, call.args.y);
  GMFAST_RUN(causal_conv1d, x, call.args);
  return y;
}

// The gradients by x, weight, bias and initial_state; each empty where not wanted.
std::tuple<Tensor, Tensor, Tensor, Tensor> backward(
    const Tensor& grad, const Tensor& x, const Tensor& weight, const Optional& bias,
    const Optional& initial_state, int64_t dilation, bool silu, bool want_x, bool want_weight,
    bool want_bias, bool want_state, const Optional& seq_idx, const Optional& lengths) {
  Call call(x, weight, bias, initial_state, dilation, silu, seq_idx, lengths);
  const Tensor grad_in = call.add("grad", grad, call.args.length, call.args.y);
  CausalConv1dBackward args;
  args.forward = call.args;
  const auto gradient = [&](bool wanted, const Tensor& like, const Sizes& sizes, Weights& weights) {
    Tensor result = empty_contiguous(x, wanted ? sizes : Sizes{0}, like.scalar_type());
    if (wanted) weights = weights_of("gradient", result, x, sizes);
    return result;
  };
  const auto image_gradient = [&](bool wanted, int64_t length, Image& image) {
    const Sizes sizes{call.args.batch, call.args.channels, length};
    Tensor result = empty_as(x, wanted ? sizes : Sizes{0});
    if (wanted) call.add("gradient", result, length, image);
    return result;
  };
  Tensor grad_x = image_gradient(want_x, call.args.length, args.grad_x);
  Tensor grad_state = image_gradient(want_state, call.args.span(), args.grad_state);
  Tensor grad_weight = gradient(want_weight, weight, sizes_of(weight), args.grad_weight);
  Tensor grad_bias =
      gradient(want_bias, bias ? *bias : weight, {call.args.channels}, args.grad_bias);
  Tensor sums;
  if (want_weight || want_bias) {
    sums = empty_contiguous(x, {args.rows(), args.columns()},
                            scalar_type(compute_dtype(call.args.dtype)));
    args.partial_sums = sums.data_ptr();
  }
  GMFAST_RUN(causal_conv1d_backward, x, args);
  return {grad_x, grad_weight, grad_bias, grad_state};
}

}  // namespace
}  // namespace gmfast

STABLE_TORCH_LIBRARY_FRAGMENT(gmfast, m) {
  m.def(
      "causal_conv1d(Tensor x, Tensor weight, Tensor? bias, Tensor? initial_state, int dilation, "
      "bool silu, Tensor? seq_idx=None, Tensor? lengths=None) -> Tensor");
  m.def(
      "causal_conv1d_backward(Tensor grad, Tensor x, Tensor weight, Tensor? bias, "
      "Tensor? initial_state, int dilation, bool silu, bool want_x, bool want_weight, "
      "bool want_bias, bool want_state, Tensor? seq_idx=None, Tensor? lengths=None) -> "
      "(Tensor, Tensor, Tensor, Tensor)");
}

GMFAST_REGISTER(m) {
  m.impl("causal_conv1d", TORCH_BOX(&gmfast::forward));
  m.impl("causal_conv1d_backward", TORCH_BOX(&gmfast::backward));
}
