#include "../rational_quadratic_spline.h"

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

using Given = std::optional<Tensor>;

// Widths, heights and derivatives: as given, or where the last two are not, views of the first,
// which then holds all three, one after the other.
struct Params {
  bool packed;
  Tensor widths, heights, derivatives;

  Params(const Tensor& given, const Given& heights_given, const Given& derivatives_given,
         bool linear_tails)
      : packed(!heights_given), widths(given) {
    STD_TORCH_CHECK(heights_given.has_value() == derivatives_given.has_value(),
                    "heights, derivatives: expected both or neither");
    if (heights_given) {
      heights = *heights_given;
      derivatives = *derivatives_given;
      return;
    }
    const int64_t bins = linear_tails ? 1 : -1;
    split(given, (given.size(given.dim() - 1) + bins) / 3);
  }

  // Of another tensor of the same shape, its parts.
  void split(const Tensor& all, int64_t bins) {
    const int64_t dim = all.dim() - 1;
    STD_TORCH_CHECK(bins > 0 && all.size(dim) >= 2 * bins,
                    "widths: expected (B, *D, 3 K - 1), or 3 K + 1 without linear tails");
    widths = torch::stable::narrow(const_cast<Tensor&>(all), dim, 0, bins);
    heights = torch::stable::narrow(const_cast<Tensor&>(all), dim, bins, bins);
    derivatives =
        torch::stable::narrow(const_cast<Tensor&>(all), dim, 2 * bins, all.size(dim) - 2 * bins);
  }
};

// Throws unless the parameters have the sizes of x, then bins, which a walk relies on.
Walk walk_of(const Tensor& x, const Params& params, bool linear_tails) {
  const int64_t dim = x.dim();
  STD_TORCH_CHECK(dim >= 1 && params.widths.dim() == dim + 1 && params.widths.size(dim) > 0,
                  "widths: expected (B, *D, K)");
  const int64_t bins = params.widths.size(dim);
  const auto check = [&](const Tensor& tensor, int64_t numbers) {
    Sizes sizes = sizes_of(x);
    sizes.push_back(numbers);
    STD_TORCH_CHECK(sizes_of(tensor) == sizes && same_device(tensor, x),
                    "widths, heights and derivatives: expected the sizes of x, then bins");
  };
  check(params.widths, bins);
  check(params.heights, bins);
  check(params.derivatives, linear_tails ? bins - 1 : bins + 1);
  return Walk(x, {&x, &params.widths, &params.heights, &params.derivatives});
}

struct Inputs {
  Walk walk;
  Tensor x, widths, heights, derivatives;  // as they are walked
  RationalQuadraticSpline args;

  Inputs(const Tensor& x_given, const Params& params, double bound, bool linear_tails,
         double min_bin_width, double min_bin_height, double min_derivative, bool inverse)
      : walk(walk_of(x_given, params, linear_tails)), args{} {
    const int64_t dim = x_given.dim();
    args.bins = params.widths.size(dim);
    args.linear_tails = linear_tails;
    args.raw_derivatives = params.derivatives.size(dim);
    x = walk.walkable_form(x_given);
    widths = walk.walkable_form(params.widths);
    heights = walk.walkable_form(params.heights);
    derivatives = walk.walkable_form(params.derivatives);
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
std::tuple<Tensor, Tensor> forward(const Tensor& x, const Tensor& widths, const Given& heights,
                                   const Given& derivatives, double bound, bool linear_tails,
                                   double min_bin_width, double min_bin_height,
                                   double min_derivative, bool inverse, bool reduce) {
  const Params params(widths, heights, derivatives, linear_tails);
  Inputs in(x, params, bound, linear_tails, min_bin_width, min_bin_height, min_derivative, inverse);
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
    const Tensor& widths, const Given& heights, const Given& derivatives, double bound,
    bool linear_tails, double min_bin_width, double min_bin_height, double min_derivative,
    bool inverse, bool reduce, bool want_x, bool want_widths, bool want_heights,
    bool want_derivatives) {
  const Params params(widths, heights, derivatives, linear_tails);
  Inputs in(x, params, bound, linear_tails, min_bin_width, min_bin_height, min_derivative, inverse);
  RationalQuadraticSplineBackward args{};
  args.forward = in.args;
  Tensor grad_y_in, grad_log_in;
  if (grad_y) {
    check_operand("grad_y", *grad_y, x, sizes_of(x), in.args.compute());
    grad_y_in = in.walk.walkable_form(*grad_y);
    args.grad_y = in.walk.operand(grad_y_in);
  }
  if (grad_log) {
    check_operand("grad_log", *grad_log, x, reduce ? Sizes{x.size(0)} : sizes_of(x),
                  in.args.compute());
    if (reduce) {
      args.grad_log.data = grad_log->data_ptr();
      args.grad_log.dtype = dtype_of(*grad_log);
      args.grad_log.batch_stride = grad_log->stride(0);
    } else {
      grad_log_in = in.walk.walkable_form(*grad_log);
      args.grad_log = in.walk.operand(grad_log_in);
    }
  }

  const auto gradient = [&](const Tensor& tensor, bool wanted, bool bins, Tensor& written) {
    if (!wanted) return empty_contiguous(tensor, {0}, tensor.scalar_type());
    Tensor grad = bins ? empty_in_order(tensor) : empty_as(tensor, sizes_of(tensor));
    written = in.walk.can_walk(grad)
                  ? grad
                  : empty_contiguous(tensor, sizes_of(tensor), tensor.scalar_type());
    return grad;
  };
  if (params.packed) want_heights = want_derivatives = false;
  Tensor written[4];
  Tensor grads[] = {gradient(x, want_x, false, written[0]),
                    gradient(widths, want_widths, true, written[1]),
                    gradient(params.heights, want_heights, true, written[2]),
                    gradient(params.derivatives, want_derivatives, true, written[3])};
  if (want_x) args.grad_x = in.walk.operand(written[0]);
  if (params.packed && want_widths) {
    Params parts = params;
    parts.split(written[1], in.args.bins);
    args.grad_widths = in.walk.operand(parts.widths);
    args.grad_heights = in.walk.operand(parts.heights);
    args.grad_derivatives = in.walk.operand(parts.derivatives);
  } else {
    if (want_widths) args.grad_widths = in.walk.operand(written[1]);
    if (want_heights) args.grad_heights = in.walk.operand(written[2]);
    if (want_derivatives) args.grad_derivatives = in.walk.operand(written[3]);
  }
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
      "rational_quadratic_spline(Tensor x, Tensor widths, Tensor? heights, Tensor? derivatives, "
      "float bound, bool linear_tails, float min_bin_width, float min_bin_height, "
      "float min_derivative, bool inverse, bool reduce) -> (Tensor, Tensor)");
  m.def(
      "rational_quadratic_spline_backward(Tensor? grad_y, Tensor? grad_log, Tensor x, "
      "Tensor widths, Tensor? heights, Tensor? derivatives, float bound, bool linear_tails, "
      "float min_bin_width, float min_bin_height, float min_derivative, bool inverse, bool reduce, "
      "bool want_x, bool want_widths, bool want_heights, bool want_derivatives) -> "
      "(Tensor, Tensor, Tensor, Tensor)");
}

GMFAST_REGISTER(m) {
  m.impl("rational_quadratic_spline", TORCH_BOX(&gmfast::forward));
  m.impl("rational_quadratic_spline_backward", TORCH_BOX(&gmfast::backward));
}
