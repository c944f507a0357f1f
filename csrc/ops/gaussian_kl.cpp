#include "../args/gaussian_kl.h"

#include <array>
#include <tuple>

#include "backend.h"
#include "rows.h"

namespace gmfast {
namespace {

bool expanded(const Tensor& tensor) {
  for (int64_t d = 0; d < tensor.dim(); ++d) {
    if (tensor.size(d) > 1 && tensor.stride(d) == 0) return true;
  }
  return false;
}

// Whose memory order all are walked in: the first's that is not broadcast.
// gmfast/ops/gaussian_kl.py states the same for fake tensors.
const Tensor& leader_of(const std::array<Tensor, 4>& inputs) {
  for (const Tensor& tensor : inputs) {
    if (!expanded(tensor)) return tensor;
  }
  return inputs[0];
}

DType compute_of(const std::array<Tensor, 4>& inputs) {
  DType dtype = DType::float32;
  for (const Tensor& tensor : inputs) {
    dtype = compute_dtype(dtype, dtype_of(tensor));
    STD_TORCH_CHECK(sizes_of(tensor) == sizes_of(inputs[0]) && same_device(tensor, inputs[0]),
                    "expected all tensors of one shape on one device");
  }
  return dtype;
}

Tensor forward(const Tensor& mean1, const Tensor& logvar1, const Tensor& mean2,
               const Tensor& logvar2) {
  const std::array<Tensor, 4> inputs{mean1, logvar1, mean2, logvar2};
  GaussianKL args{};
  args.compute = compute_of(inputs);
  const Tensor& leader = leader_of(inputs);
  RowWalk walk(leader);
  const Tensor kept[] = {walk.add(mean1, args.mean1), walk.add(logvar1, args.logvar1),
                         walk.add(mean2, args.mean2), walk.add(logvar2, args.logvar2)};
  Tensor kl = empty_as(leader, sizes_of(leader), scalar_type(args.compute));
  walk.add(kl, args.kl);
  args.shape = walk.merged_shape();
  GMFAST_RUN(gaussian_kl, leader, args);
  return kl;
}

// Of no elements where not wanted.
std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Tensor& grad, const Tensor& mean1,
                                                    const Tensor& logvar1, const Tensor& mean2,
                                                    const Tensor& logvar2, bool want_mean1,
                                                    bool want_logvar1, bool want_mean2,
                                                    bool want_logvar2) {
  const std::array<Tensor, 4> inputs{mean1, logvar1, mean2, logvar2};
  GaussianKLBackward args{};
  args.compute = compute_of(inputs);
  const Tensor& leader = leader_of(inputs);
  check_operand("grad", grad, leader, sizes_of(leader), args.compute);
  RowWalk walk(leader);
  const Tensor kept[] = {walk.add(grad, args.grad), walk.add(mean1, args.mean1),
                         walk.add(logvar1, args.logvar1), walk.add(mean2, args.mean2),
                         walk.add(logvar2, args.logvar2)};
  const auto gradient = [&](const Tensor& of, bool wanted, RowOperand& operand) {
    Tensor result = empty_as(leader, wanted ? sizes_of(leader) : Sizes{0}, of.scalar_type());
    if (wanted) walk.add(result, operand);
    return result;
  };
  Tensor grad_mean1 = gradient(mean1, want_mean1, args.grad_mean1);
  Tensor grad_logvar1 = gradient(logvar1, want_logvar1, args.grad_logvar1);
  Tensor grad_mean2 = gradient(mean2, want_mean2, args.grad_mean2);
  Tensor grad_logvar2 = gradient(logvar2, want_logvar2, args.grad_logvar2);
  args.shape = walk.merged_shape();
  GMFAST_RUN(gaussian_kl_backward, leader, args);
  return {grad_mean1, grad_logvar1, grad_mean2, grad_logvar2};
}

}  // namespace
}  // namespace gmfast

STABLE_TORCH_LIBRARY_FRAGMENT(gmfast, m) {
  m.def("gaussian_kl(Tensor mean1, Tensor logvar1, Tensor mean2, Tensor logvar2) -> Tensor");
  m.def(
      "gaussian_kl_backward(Tensor grad, Tensor mean1, Tensor logvar1, Tensor mean2, "
      "Tensor logvar2, bool want_mean1, bool want_logvar1, bool want_mean2, bool want_logvar2) -> "
      "(Tensor, Tensor, Tensor, Tensor)");
}

GMFAST_REGISTER(m) {
  m.impl("gaussian_kl", TORCH_BOX(&gmfast::forward));
  m.impl("gaussian_kl_backward", TORCH_BOX(&gmfast::backward));
}
