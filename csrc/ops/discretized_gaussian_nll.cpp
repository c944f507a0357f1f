#include "../args/discretized_gaussian_nll.h"

#include <tuple>

#include "backend.h"
#include "rows.h"

namespace gmfast {
namespace {

// What both directions begin with. Returns what the operands point into.
template <class Args>
std::tuple<Tensor, Tensor, Tensor> add_inputs(RowWalk& walk, Args& args, const Tensor& x,
                                              const Tensor& mean, const Tensor& log_scale,
                                              int64_t num_classes, bool exact) {
  STD_TORCH_CHECK(same_device(mean, x) && same_device(log_scale, x),
                  "expected all tensors on one device");
  STD_TORCH_CHECK(num_classes >= 2, "num_classes: expected at least 2");
  args.compute = compute_dtype(compute_dtype(dtype_of(x), dtype_of(mean)), dtype_of(log_scale));
  args.num_classes = num_classes;
  args.exact = exact;
  return {walk.add(x, args.x), walk.add(mean, args.mean), walk.add(log_scale, args.log_scale)};
}

Tensor forward(const Tensor& x, const Tensor& mean, const Tensor& log_scale, int64_t num_classes,
               bool exact) {
  RowWalk walk(x);
  DiscretizedGaussianNLL args{};
  const auto kept = add_inputs(walk, args, x, mean, log_scale, num_classes, exact);
  Tensor nll = empty_as(x, sizes_of(x), scalar_type(args.compute));
  walk.add(nll, args.nll);
  args.shape = walk.merged_shape();
  GMFAST_RUN(discretized_gaussian_nll, x, args);
  return nll;
}

// Of no elements where not wanted, else of the shape of x.
std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad, const Tensor& x, const Tensor& mean,
                                            const Tensor& log_scale, int64_t num_classes,
                                            bool exact, bool want_x, bool want_mean,
                                            bool want_log_scale) {
  RowWalk walk(x);
  DiscretizedGaussianNLLBackward args{};
  const auto kept = add_inputs(walk, args, x, mean, log_scale, num_classes, exact);
  check_operand("grad", grad, x, sizes_of(x), args.compute);
  const Tensor grad_in = walk.add(grad, args.grad);
  const auto gradient = [&](const Tensor& of, bool wanted, RowOperand& operand) {
    Tensor result = empty_as(x, wanted ? sizes_of(x) : Sizes{0}, of.scalar_type());
    if (wanted) walk.add(result, operand);
    return result;
  };
  Tensor grad_x = gradient(x, want_x, args.grad_x);
  Tensor grad_mean = gradient(mean, want_mean, args.grad_mean);
  Tensor grad_log_scale = gradient(log_scale, want_log_scale, args.grad_log_scale);
  args.shape = walk.merged_shape();
  GMFAST_RUN(discretized_gaussian_nll_backward, x, args);
  return {grad_x, grad_mean, grad_log_scale};
}

}  // namespace
}  // namespace gmfast

STABLE_TORCH_LIBRARY_FRAGMENT(gmfast, m) {
  m.def(
      "discretized_gaussian_nll(Tensor x, Tensor mean, Tensor log_scale, int num_classes, "
      "bool exact) -> Tensor");
  m.def(
      "discretized_gaussian_nll_backward(Tensor grad, Tensor x, Tensor mean, Tensor log_scale, "
      "int num_classes, bool exact, bool want_x, bool want_mean, bool want_log_scale) -> "
      "(Tensor, Tensor, Tensor)");
}

GMFAST_REGISTER(m) {
  m.impl("discretized_gaussian_nll", TORCH_BOX(&gmfast::forward));
  m.impl("discretized_gaussian_nll_backward", TORCH_BOX(&gmfast::backward));
}
