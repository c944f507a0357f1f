#include "../rational_quadratic_spline.h"

#include <algorithm>
#include <optional>
#include <tuple>

#include "backend.h"
#include "layout.h"

namespace gmfast {
namespace {

// How (B, *D) is walked: the first `split` - 1 of *D as groups, the others as pixels.
class Walk {
 public:
  Walk(const Tensor& x, std::initializer_list<const Tensor*> tensors) : dim_(x.dim()) {
    size_t fewest = tensors.size() + 1;
    for (size_t split = 1; split <= size_t(dim_); ++split) {
      size_t copies = 0;
      for (const Tensor* tensor : tensors) copies += !walkable(*tensor, split);
      if (copies < fewest) fewest = copies, split_ = split;
    }
  }

  int64_t groups(const Tensor& x) const { return extent(x, 1, split_).size; }
  int64_t pixels(const Tensor& x) const { return extent(x, split_, dim_).size; }

  // The tensor itself, or a contiguous copy.
  Tensor walkable_form(const Tensor& tensor) const {
    return walkable(tensor, split_) ? tensor : torch::stable::contiguous(tensor);
  }

  bool can_walk(const Tensor& tensor) const { return walkable(tensor, split_); }

  // (B, *D) or (B, *D, K)
  SplineOperand operand(const Tensor& tensor) const {
    SplineOperand operand;
    operand.data = tensor.data_ptr();
    operand.dtype = dtype_of(tensor);
    operand.batch_stride = tensor.stride(0);
    operand.group_stride = extent(tensor, 1, split_).stride;
    operand.pixel_stride = extent(tensor, split_, dim_).stride;
    operand.bin_stride = tensor.dim() > dim_ ? tensor.stride(dim_) : 1;
    return operand;
  }

 private:
  bool walkable(const Tensor& tensor, size_t split) const {
    const Sizes order = memory_order(tensor.dim(), false);
    Extent groups, pixels;
    return collapse(tensor, order, 1, split, groups) &&
           collapse(tensor, order, split, size_t(dim_), pixels);
  }

  Extent extent(const Tensor& tensor, size_t first, size_t last) const {
    Extent extent;
    STD_TORCH_CHECK(collapse(tensor, memory_order(tensor.dim(), false), first, last, extent),
                    "expected dimensions with one stride");
    return extent;
  }

  int64_t dim_;
  size_t split_ = 1;
};

// Dense, its dimensions in memory in the order of the tensor's, so that the gradient of a view of a
// convolution's output lies as that output does: contiguous for an expanded one.
// gmfast/ops/rational_quadratic_spline.py states the same for fake tensors.
Tensor empty_in_order(const Tensor& tensor) {
  const Sizes sizes = sizes_of(tensor);
  Sizes strides = dense_strides(sizes, false), order = memory_order(tensor.dim(), false);
  bool expanded = false;
  for (int64_t d : order) expanded = expanded || (sizes[d] > 1 && tensor.stride(d) == 0);
  if (!expanded) {
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return tensor.stride(a) > tensor.stride(b); });
    int64_t stride = 1;
    for (size_t i = order.size(); i-- > 0;) {
      strides[order[i]] = stride;
      stride *= sizes[order[i]] > 0 ? sizes[order[i]] : 1;
    }
  }
  return empty_strided(tensor, sizes, strides, tensor.scalar_type());
}

struct Inputs {
  Walk walk;
  Tensor x, widths, heights, derivatives;  // as they are walked
  RationalQuadraticSpline args;

  Inputs(const Tensor& x_given, const Tensor& widths_given, const Tensor& heights_given,
         const Tensor& derivatives_given, double bound, bool linear_tails, double min_bin_width,
         double min_bin_height, double min_derivative, bool inverse)
      : walk(x_given, {&x_given, &widths_given, &heights_given, &derivatives_given}), args{} {
    const int64_t dim = x_given.dim();
    STD_TORCH_CHECK(dim >= 1 && widths_given.dim() == dim + 1 && widths_given.size(dim) > 0,
                    "widths: expected (B, *D, K)");
    args.bins = widths_given.size(dim);
    args.linear_tails = linear_tails;
    args.raw_derivatives = linear_tails ? args.bins - 1 : args.bins + 1;
    const auto check = [&](const Tensor& tensor, int64_t bins) {
      Sizes sizes = sizes_of(x_given);
      sizes.push_back(bins);
      STD_TORCH_CHECK(sizes_of(tensor) == sizes && tensor.is_cuda() == x_given.is_cuda(),
                      "widths, heights and derivatives: expected the sizes of x, then bins");
    };
    check(widths_given, args.bins);
    check(heights_given, args.bins);
    check(derivatives_given, args.raw_derivatives);

    x = walk.walkable_form(x_given);
    widths = walk.walkable_form(widths_given);
    heights = walk.walkable_form(heights_given);
    derivatives = walk.walkable_form(derivatives_given);
    args.batch = x.size(0);
    args.groups = walk.groups(x);
    args.pixels = walk.pixels(x);
    args.elements = args.groups * args.pixels;
    args.bound = bound;
    args.min_bin_width = min_bin_width;
    args.min_bin_height = min_bin_height;
    args.min_derivative = min_derivative;
    args.inverse = inverse;
    args.x = walk.operand(x);
    args.widths = walk.operand(widths);
    args.heights = walk.operand(heights);
    args.derivatives = walk.operand(derivatives);
  }
};

// y and the log-derivatives, summed over each sample or one by one.
std::tuple<Tensor, Tensor> forward(const Tensor& x, const Tensor& widths, const Tensor& heights,
                                   const Tensor& derivatives, double bound, bool linear_tails,
                                   double min_bin_width, double min_bin_height,
                                   double min_derivative, bool inverse, bool reduce) {
  Inputs in(x, widths, heights, derivatives, bound, linear_tails, min_bin_width, min_bin_height,
            min_derivative, inverse);
  Tensor y = empty_as(x, sizes_of(x)), y_out = y;
  if (!in.walk.can_walk(y)) y_out = empty_contiguous(x, sizes_of(x), x.scalar_type());
  Tensor log =
      empty_contiguous(x, reduce ? Sizes{x.size(0)} : sizes_of(x), scalar_type(in.args.compute()));
  in.args.y = in.walk.operand(y_out);
  (reduce ? in.args.log_det : in.args.log_derivative) = log.data_ptr();
  in.args.sum = SampleSum(in.args.batch, in.args.elements, 2);
  const Tensor scratch = scratch_for(x, x.is_cuda() && reduce ? in.args.sum.scratch_bytes() : 0);
  in.args.sum.scratch = scratch.data_ptr();
  GMFAST_RUN(rational_quadratic_spline, x, in.args);
  if (!in.walk.can_walk(y)) torch::stable::copy_(y, y_out);
  return {y, log};
}

// The gradient by each input, empty where not wanted.
std::tuple<Tensor, Tensor, Tensor, Tensor> backward(
    const std::optional<Tensor>& grad_y, const std::optional<Tensor>& grad_log, const Tensor& x,
    const Tensor& widths, const Tensor& heights, const Tensor& derivatives, double bound,
    bool linear_tails, double min_bin_width, double min_bin_height, double min_derivative,
    bool inverse, bool reduce, bool want_x, bool want_widths, bool want_heights,
    bool want_derivatives) {
  Inputs in(x, widths, heights, derivatives, bound, linear_tails, min_bin_width, min_bin_height,
            min_derivative, inverse);
  RationalQuadraticSplineBackward args{};
  args.forward = in.args;
  Tensor grad_y_in, grad_log_in;
  if (grad_y) {
    STD_TORCH_CHECK(sizes_of(*grad_y) == sizes_of(x), "grad_y: expected the shape of x");
    grad_y_in = in.walk.walkable_form(*grad_y);
    args.grad_y = in.walk.operand(grad_y_in);
  }
  if (grad_log) {
    STD_TORCH_CHECK(sizes_of(*grad_log) == (reduce ? Sizes{x.size(0)} : sizes_of(x)),
                    "grad_log: expected the shape of the log-derivatives");
    if (reduce) {
      args.grad_log.data = grad_log->data_ptr();
      args.grad_log.dtype = dtype_of(*grad_log);
      args.grad_log.batch_stride = grad_log->stride(0);
    } else {
      grad_log_in = in.walk.walkable_form(*grad_log);
      args.grad_log = in.walk.operand(grad_log_in);
    }
  }

  const auto gradient = [&](const Tensor& tensor, bool wanted, bool bins, SplineOperand& operand,
                            Tensor& written) {
    if (!wanted) return empty_contiguous(tensor, {0}, tensor.scalar_type());
    Tensor grad = bins ? empty_in_order(tensor) : empty_as(tensor, sizes_of(tensor));
    written = in.walk.can_walk(grad)
                  ? grad
                  : empty_contiguous(tensor, sizes_of(tensor), tensor.scalar_type());
    operand = in.walk.operand(written);
    return grad;
  };
  Tensor written[4];
  Tensor grads[] = {
      gradient(x, want_x, false, args.grad_x, written[0]),
      gradient(widths, want_widths, true, args.grad_widths, written[1]),
      gradient(heights, want_heights, true, args.grad_heights, written[2]),
      gradient(derivatives, want_derivatives, true, args.grad_derivatives, written[3])};
  GMFAST_RUN(rational_quadratic_spline_backward, x, args);
  const bool wanted[] = {want_x, want_widths, want_heights, want_derivatives};
  for (int i = 0; i < 4; ++i) {
    if (wanted[i] && !in.walk.can_walk(grads[i])) torch::stable::copy_(grads[i], written[i]);
  }
  return {grads[0], grads[1], grads[2], grads[3]};
}

}  // namespace
}  // namespace gmfast

STABLE_TORCH_LIBRARY_FRAGMENT(gmfast, m) {
  m.def(
      "rational_quadratic_spline(Tensor x, Tensor widths, Tensor heights, Tensor derivatives, "
      "float bound, bool linear_tails, float min_bin_width, float min_bin_height, "
      "float min_derivative, bool inverse, bool reduce) -> (Tensor, Tensor)");
  m.def(
      "rational_quadratic_spline_backward(Tensor? grad_y, Tensor? grad_log, Tensor x, "
      "Tensor widths, Tensor heights, Tensor derivatives, float bound, bool linear_tails, "
      "float min_bin_width, float min_bin_height, float min_derivative, bool inverse, bool reduce, "
      "bool want_x, bool want_widths, bool want_heights, bool want_derivatives) -> "
      "(Tensor, Tensor, Tensor, Tensor)");
}

GMFAST_REGISTER(m) {
  m.impl("rational_quadratic_spline", TORCH_BOX(&gmfast::forward));
  m.impl("rational_quadratic_spline_backward", TORCH_BOX(&gmfast::backward));
}
