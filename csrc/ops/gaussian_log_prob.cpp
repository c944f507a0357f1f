#include "../args/gaussian_log_prob.h"

#include <optional>
#include <tuple>

#include "backend.h"
#include "rows.h"

namespace gmfast {
namespace {

using Optional = std::optional<Tensor>;

DType compute_of(const Tensor& z, const Optional& mean, const Optional& log_std) {
  DType dtype = compute_dtype(dtype_of(z));
  if (mean) dtype = compute_dtype(dtype, dtype_of(*mean));
  if (log_std) dtype = compute_dtype(dtype, dtype_of(*log_std));
  return dtype;
}

Tensor add(RowWalk& walk, const Tensor& z, const Optional& tensor, RowOperand& operand) {
  if (!tensor) return {};
  STD_TORCH_CHECK(same_device(*tensor, z), "expected all tensors on one device");
  return walk.add(*tensor, operand);
}

Tensor forward(const Tensor& z, const Optional& mean, const Optional& log_std) {
  RowWalk walk(z);
  GaussianLogProb args{};
  const Tensor z_in = walk.add(z, args.z), mean_in = add(walk, z, mean, args.mean),
               log_std_in = add(walk, z, log_std, args.log_std);
  args.shape = walk.merged_shape();
  args.compute = compute_of(z, mean, log_std);
  args.elements = args.shape.rows * args.shape.inner;
  Tensor log_prob = empty_contiguous(z, {z.size(0)}, scalar_type(args.compute));
  args.log_prob = log_prob.data_ptr();
  Tensor scratch;
  if (z.is_cuda()) {
    args.sum = SampleSum(args.shape.batch, args.elements, 32);
    scratch = scratch_for(z, args.sum.scratch_bytes());
    args.sum.scratch = scratch.data_ptr();
  }
  GMFAST_RUN(gaussian_log_prob, z, args);
  return log_prob;
}

// Gradients in the shapes and dtypes of z, mean and log_std; of no elements where not wanted. mean
// and log_std are of z's shape, or numbers of the channels in (C, 1, ...).
std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad, const Tensor& z,
                                            const Optional& mean, const Optional& log_std,
                                            bool want_z, bool want_mean, bool want_log_std) {
  RowWalk walk(z);
  GaussianLogProbBackward args{};
  const Tensor z_in = walk.add(z, args.z), mean_in = add(walk, z, mean, args.mean),
               log_std_in = add(walk, z, log_std, args.log_std);
  args.compute = compute_of(z, mean, log_std);
  STD_TORCH_CHECK(grad.dim() == 1 && grad.size(0) == z.size(0) && dtype_of(grad) == args.compute &&
                      same_device(grad, z),
                  "grad: expected (B,) in the dtype of the result");
  args.grad = grad.data_ptr();
  args.grad_stride = grad.stride(0);

  const auto gradient = [&](const Optional& of, bool wanted, RowOperand& whole, Channels& sums) {
    const Tensor& like = of ? *of : z;
    if (!of || !wanted) return empty_as(like, {0});
    if (like.dim() == z.dim()) {
      Tensor result = empty_as(z, sizes_of(z), like.scalar_type());
      walk.add(result, whole);
      return result;
    }
    STD_TORCH_CHECK(like.dim() == z.dim() - 1 && like.numel() == z.size(1),
                    "mean and log_std: expected the shape of z, or (C, 1, ...)");
    Tensor result = empty_contiguous(like, sizes_of(like), like.scalar_type());
    sums = {result.data_ptr(), dtype_of(result), 1};
    return result;
  };
  Channels none;
  Tensor grad_z = gradient(z, want_z, args.grad_z, none);
  Tensor grad_mean = gradient(mean, want_mean, args.grad_mean, args.channel_mean);
  Tensor grad_log_std = gradient(log_std, want_log_std, args.grad_log_std, args.channel_log_std);

  const bool sums = args.channel_mean.data || args.channel_log_std.data;
  args.shape = sums ? walk.shape() : walk.merged_shape();
  args.channels_inner = walk.channels_inner();
  Tensor scratch;
  if (sums && z.is_cuda()) {
    args.sum = ChannelSum(args.shape, args.channels_inner);
    scratch = scratch_for(z, args.sum.scratch_bytes());
    args.sum.scratch = static_cast<double*>(scratch.data_ptr());
  }
  GMFAST_RUN(gaussian_log_prob_backward, z, args);
  return {grad_z, grad_mean, grad_log_std};
}

}  // namespace
}  // namespace gmfast

STABLE_TORCH_LIBRARY_FRAGMENT(gmfast, m) {
  m.def("gaussian_log_prob(Tensor z, Tensor? mean, Tensor? log_std) -> Tensor");
  m.def(
      "gaussian_log_prob_backward(Tensor grad, Tensor z, Tensor? mean, Tensor? log_std, "
      "bool want_z, bool want_mean, bool want_log_std) -> (Tensor, Tensor, Tensor)");
}

GMFAST_REGISTER(m) {
  m.impl("gaussian_log_prob", TORCH_BOX(&gmfast::forward));
  m.impl("gaussian_log_prob_backward", TORCH_BOX(&gmfast::backward));
}
