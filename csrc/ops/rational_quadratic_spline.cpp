#include "../args/rational_quadratic_spline.h"

#include <optional>
#include <tuple>

#include "backend.h"
#include "grid.h"

namespace gmfast {
namespace {

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
GridWalk walk_of(const Tensor& x, const Params& params, bool linear_tails) {
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
  return GridWalk(dim, {&x, &params.widths, &params.heights, &params.derivatives});
}

struct Inputs {
  GridWalk walk;
  RationalQuadraticSpline args;

  Inputs(const Tensor& x, const Params& params, double bound, bool linear_tails,
         double min_bin_width, double min_bin_height, double min_derivative, bool inverse)
      : walk(walk_of(x, params, linear_tails)), args{} {
    args.batch = x.size(0);
    args.rows = walk.rows(x);
    args.columns = walk.columns(x);
    args.elements = args.rows * args.columns;
    args.bins = params.widths.size(x.dim());
    args.linear_tails = linear_tails;
    args.raw_derivatives = params.derivatives.size(x.dim());
    args.bound = bound;
    args.min_bin_width = min_bin_width;
    args.min_bin_height = min_bin_height;
    args.min_derivative = min_derivative;
    args.inverse = inverse;
    args.x = walk(x);
    args.widths = walk(params.widths);
    args.heights = walk(params.heights);
    args.derivatives = walk(params.derivatives);
  }
};

// y and the log-derivatives, summed over each sample or one by one.
std::tuple<Tensor, Tensor> forward(const Tensor& x, const Tensor& widths, const Given& heights,
                                   const Given& derivatives, double bound, bool linear_tails,
                                   double min_bin_width, double min_bin_height,
                                   double min_derivative, bool inverse, bool reduce) {
  const Params params(widths, heights, derivatives, linear_tails);
  Inputs in(x, params, bound, linear_tails, min_bin_width, min_bin_height, min_derivative, inverse);
  Tensor y = empty_as(x, sizes_of(x));
  const Tensor written = in.walk.written_for(y);
  Tensor log =
      empty_contiguous(x, reduce ? Sizes{x.size(0)} : sizes_of(x), scalar_type(in.args.compute()));
  in.args.y = in.walk(written);
  (reduce ? in.args.log_det : in.args.log_derivative) = log.data_ptr();
  in.args.sum = SampleSum(in.args.batch, in.args.elements, 2);
  const Tensor scratch = scratch_for(x, x.is_cuda() && reduce ? in.args.sum.scratch_bytes() : 0);
  in.args.sum.scratch = scratch.data_ptr();
  GMFAST_RUN(rational_quadratic_spline, x, in.args);
  if (!in.walk.can_walk(y)) torch::stable::copy_(y, written);
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
  if (grad_y) {
    check_operand("grad_y", *grad_y, x, sizes_of(x), in.args.compute());
    args.grad_y = in.walk(*grad_y);
  }
  if (grad_log) {
    check_operand("grad_log", *grad_log, x, reduce ? Sizes{x.size(0)} : sizes_of(x),
                  in.args.compute());
    args.grad_log = reduce ? grid_of_samples(*grad_log) : in.walk(*grad_log);
  }

  const auto gradient = [&](const Tensor& tensor, bool wanted, bool bins, Tensor& written) {
    if (!wanted) return empty_contiguous(tensor, {0}, tensor.scalar_type());
    Tensor grad = bins ? empty_in_order(tensor) : empty_as(tensor, sizes_of(tensor));
    written = in.walk.written_for(grad);
    return grad;
  };
  if (params.packed) want_heights = want_derivatives = false;
  Tensor written[4];
  Tensor grads[] = {gradient(x, want_x, false, written[0]),
                    gradient(widths, want_widths, true, written[1]),
                    gradient(params.heights, want_heights, true, written[2]),
                    gradient(params.derivatives, want_derivatives, true, written[3])};
  if (want_x) args.grad_x = in.walk(written[0]);
  if (params.packed && want_widths) {
    Params parts = params;
    parts.split(written[1], in.args.bins);
    args.grad_widths = in.walk(parts.widths);
    args.grad_heights = in.walk(parts.heights);
    args.grad_derivatives = in.walk(parts.derivatives);
  } else {
    if (want_widths) args.grad_widths = in.walk(written[1]);
    if (want_heights) args.grad_heights = in.walk(written[2]);
    if (want_derivatives) args.grad_derivatives = in.walk(written[3]);
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
