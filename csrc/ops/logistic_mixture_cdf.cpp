#include "../args/logistic_mixture_cdf.h"

#include <optional>
#include <tuple>

#include "../common/sample_sum.h"
#include "backend.h"
#include "grid.h"

namespace gmfast {
namespace {

// A walk that reads most inputs in place; where an output has its channels innermost, it is written
// in place: dimension 1 is the rows.
GridWalk walk_of(const Tensor& x, const std::vector<Tensor>& params, const Tensor& output) {
  if (channels_innermost(output)) return GridWalk(x.dim(), 2);
  return GridWalk(x.dim(), {&x, &params[0], &params[1], &params[2]});
}

MixtureShape shape_of(const Tensor& x, const std::vector<Tensor>& params, const GridWalk& walk) {
  return {x.size(0), walk.rows(x), walk.columns(x), params[0].size(x.dim())};
}

void check(const Tensor& x, const std::vector<Tensor>& params) {
  const int64_t dim = x.dim();
  STD_TORCH_CHECK(dim >= 1, "x: expected (B, *D)");
  for (const Tensor& param : params) {
    STD_TORCH_CHECK(param.dim() == dim + 1 && param.size(dim) > 0 &&
                        param.size(dim) == params[0].size(dim) && same_device(param, x),
                    "logits, means and log_scales: expected (B, *D, K) on the device of x");
    for (int64_t d = 0; d < dim; ++d) {
      STD_TORCH_CHECK(param.size(d) == x.size(d), "x and its parameters: sizes differ");
    }
  }
}

// y, its log-determinant or, with `per_element`, log-derivative, and y in the dtype computed in,
// empty where that is y's own or not wanted.
std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& x, const Tensor& logits,
                                           const Tensor& means, const Tensor& log_scales,
                                           bool inverse, bool per_element, bool want_solution) {
  const std::vector<Tensor> params{logits, means, log_scales};
  check(x, params);
  Tensor y = empty_as(x, sizes_of(x));
  GridWalk walk = walk_of(x, params, y);
  const Tensor written = walk.written_for(y);
  LogisticMixtureCdf args{};
  args.shape = shape_of(x, params, walk);
  args.inverse = inverse;
  args.x = walk(x);
  args.logits = walk(logits);
  args.means = walk(means);
  args.log_scales = walk(log_scales);
  args.y = walk(written);
  const ScalarType dtype = scalar_type(args.compute());
  const bool solution_wanted = want_solution && x.scalar_type() != dtype;
  Tensor solution = empty_contiguous(x, solution_wanted ? sizes_of(x) : Sizes{0}, dtype);
  if (solution_wanted) args.solution = solution.data_ptr();
  Tensor log_derivative = empty_contiguous(x, sizes_of(x), dtype), log_det = log_derivative;
  args.log_derivative = log_derivative.data_ptr();
  if (!per_element) {
    log_det = empty_contiguous(x, {x.size(0)}, dtype);
    args.log_det = log_det.data_ptr();
  }
  Tensor scratch = scratch_for(
      x, x.is_cuda() ? SampleSum(args.shape.batch, args.shape.sample(), 1).scratch_bytes() : 0);
  args.scratch = scratch.data_ptr();
  GMFAST_RUN(logistic_mixture_cdf, x, args);
  if (!walk.can_walk(y)) torch::stable::copy_(y, written);
  return {y, log_det, solution};
}

// The gradients by x (of the direction called) and by each parameter, empty where bit 0, 1, ... of
// `wanted` is not set. Here x is the data, of the inverse the output.
std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const std::optional<Tensor>& grad_y,
                                                    const std::optional<Tensor>& grad_log_det,
                                                    const Tensor& x, const Tensor& logits,
                                                    const Tensor& means, const Tensor& log_scales,
                                                    bool inverse, bool per_element,
                                                    int64_t wanted) {
  const std::vector<Tensor> params{logits, means, log_scales};
  check(x, params);
  const DType compute = compute_dtype(compute_dtype(dtype_of(x), dtype_of(logits)),
                                      compute_dtype(dtype_of(means), dtype_of(log_scales)));
  if (grad_y) check_operand("grad_y", *grad_y, x, sizes_of(x), compute);
  if (grad_log_det) {
    check_operand("grad_log_det", *grad_log_det, x, per_element ? sizes_of(x) : Sizes{x.size(0)},
                  compute);
  }
  // A parameter's gradient lies in memory as it does, so that what follows need not transpose it.
  const auto gradient = [&](const Tensor& tensor, int bit) {
    if (!(wanted >> bit & 1)) return empty_contiguous(tensor, {0}, tensor.scalar_type());
    return bit == 0 ? empty_as(tensor, sizes_of(tensor)) : empty_in_order(tensor);
  };
  Tensor grads[] = {gradient(x, 0), gradient(logits, 1), gradient(means, 2),
                    gradient(log_scales, 3)};

  GridWalk walk = walk_of(x, params, grads[0]);
  LogisticMixtureCdfBackward args{};
  args.shape = shape_of(x, params, walk);
  args.inverse = inverse;
  if (grad_y) args.grad_y = walk(*grad_y);
  if (grad_log_det && per_element) args.grad_log_derivative = walk(*grad_log_det);
  if (grad_log_det && !per_element) args.grad_log_derivative = grid_of_samples(*grad_log_det);
  args.x = walk(x);
  args.logits = walk(logits);
  args.means = walk(means);
  args.log_scales = walk(log_scales);
  Grid* results[] = {&args.grad_x, &args.grad_logits, &args.grad_means, &args.grad_log_scales};
  Tensor written[4];  // the gradients, or where those cannot be walked contiguous ones
  for (int i = 0; i < 4; ++i) {
    if (!(wanted >> i & 1)) continue;
    written[i] = walk.written_for(grads[i]);
    *results[i] = walk(written[i]);
  }
  GMFAST_RUN(logistic_mixture_cdf_backward, x, args);
  for (int i = 0; i < 4; ++i) {
    if (wanted >> i & 1 && !walk.can_walk(grads[i])) {
      torch::stable::copy_(grads[i], written[i]);
    }
  }
  return {grads[0], grads[1], grads[2], grads[3]};
}

}  // namespace
}  // namespace gmfast

STABLE_TORCH_LIBRARY_FRAGMENT(gmfast, m) {
  m.def(
      "logistic_mixture_cdf(Tensor x, Tensor logits, Tensor means, Tensor log_scales, "
      "bool inverse, bool per_element, bool want_solution) -> (Tensor, Tensor, Tensor)");
  m.def(
      "logistic_mixture_cdf_backward(Tensor? grad_y, Tensor? grad_log_det, Tensor x, "
      "Tensor logits, Tensor means, Tensor log_scales, bool inverse, bool per_element, "
      "int wanted) -> (Tensor, Tensor, Tensor, Tensor)");
}

GMFAST_REGISTER(m) {
  m.impl("logistic_mixture_cdf", TORCH_BOX(&gmfast::forward));
  m.impl("logistic_mixture_cdf_backward", TORCH_BOX(&gmfast::backward));
}
