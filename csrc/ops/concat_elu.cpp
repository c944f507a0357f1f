#include "../args/concat_elu.h"

#include "backend.h"
#include "pairs.h"

namespace gmfast {
namespace {

Tensor forward(const Tensor& x, int64_t dim) {
  PairWalk walk(x, dim);
  Sizes sizes = sizes_of(x);
  sizes[dim] *= 2;
  Tensor y = empty_as(x, sizes);

  ConcatElu args{};
  const Tensor x_in = walk.add(x, 1, args.x);
  walk.add(y, 2, args.y);
  args.shape = walk.shape();
  GMFAST_RUN(concat_elu, x, args);
  return y;
}

Tensor backward(const Tensor& grad_y, const Tensor& x, int64_t dim) {
  PairWalk walk(x, dim);
  STD_TORCH_CHECK(grad_y.dim() == x.dim() && grad_y.numel() == 2 * x.numel() &&
                      grad_y.size(dim) == 2 * x.size(dim) &&
                      grad_y.scalar_type() == x.scalar_type(),
                  "grad: expected the shape and dtype of the forward's result");
  Tensor grad_x = empty_as(x, sizes_of(x));

  ConcatEluBackward args{};
  const Tensor grad_in = walk.add(grad_y, 2, args.grad_y), x_in = walk.add(x, 1, args.x);
  walk.add(grad_x, 1, args.grad_x);
  args.shape = walk.shape();
  GMFAST_RUN(concat_elu_backward, x, args);
  return grad_x;
}

}  // namespace
}  // namespace gmfast

STABLE_TORCH_LIBRARY_FRAGMENT(gmfast, m) {
  m.def("concat_elu(Tensor x, int dim) -> Tensor");
  m.def("concat_elu_backward(Tensor grad, Tensor x, int dim) -> Tensor");
}

GMFAST_REGISTER(m) {
  m.impl("concat_elu", TORCH_BOX(&gmfast::forward));
  m.impl("concat_elu_backward", TORCH_BOX(&gmfast::backward));
}
