#include "../args/gated_activation.h"

#include <optional>

#include "backend.h"
#include "pairs.h"

namespace gmfast {
namespace {

Tensor forward(const Tensor& x, const std::optional<Tensor>& residual, int64_t dim) {
  PairWalk walk(x, dim);
  STD_TORCH_CHECK(x.size(dim) % 2 == 0, "x: expected an even size along dim");
  Sizes sizes = sizes_of(x);
  sizes[dim] /= 2;
  Tensor y = empty_as(x, sizes);

  GatedActivation args{};
  const Tensor x_in = walk.add(x, 2, args.x);
  walk.add(y, 1, args.y);
  Tensor residual_in;
  if (residual) {
    STD_TORCH_CHECK(sizes_of(*residual) == sizes && residual->scalar_type() == x.scalar_type(),
                    "residual: expected the result's shape and dtype");
    residual_in = walk.add(*residual, 1, args.residual);
  }
  args.shape = walk.shape();
  GMFAST_RUN(gated_activation, x, args);
  return y;
}

Tensor backward(const Tensor& grad_y, const Tensor& x, int64_t dim) {
  PairWalk walk(x, dim);
  STD_TORCH_CHECK(grad_y.dim() == x.dim() && 2 * grad_y.numel() == x.numel() &&
                      2 * grad_y.size(dim) == x.size(dim) &&
                      grad_y.scalar_type() == x.scalar_type(),
                  "grad: expected the shape and dtype of the forward's result");
  Tensor grad_x = empty_as(x, sizes_of(x));

  GatedActivationBackward args{};
  const Tensor grad_in = walk.add(grad_y, 1, args.grad_y), x_in = walk.add(x, 2, args.x);
  walk.add(grad_x, 2, args.grad_x);
  args.shape = walk.shape();
  GMFAST_RUN(gated_activation_backward, x, args);
  return grad_x;
}

}  // namespace
}  // namespace gmfast

STABLE_TORCH_LIBRARY_FRAGMENT(gmfast, m) {
  m.def("gated_activation(Tensor x, Tensor? residual, int dim) -> Tensor");
  m.def("gated_activation_backward(Tensor grad, Tensor x, int dim) -> Tensor");
}

GMFAST_REGISTER(m) {
  m.impl("gated_activation", TORCH_BOX(&gmfast::forward));
  m.impl("gated_activation_backward", TORCH_BOX(&gmfast::backward));
}
