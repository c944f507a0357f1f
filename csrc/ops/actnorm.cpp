#include "../args/actnorm.h"

#include <optional>
#include <tuple>

#include "backend.h"
#include "rows.h"

namespace gmfast {
namespace {

// What forward and backward have in common.
template <class Args>
void describe(Args& args, const Tensor& x, const Tensor& shift, const Tensor& log_scale,
              bool inverse, const RowWalk& walk) {
  args.shape = walk.shape();
  args.channels_inner = walk.channels_inner();
  args.adjoin = walk.all_adjoin();
  args.batch = x.size(0);
  args.channels = x.size(1);
  args.pixels = pixels_of(x);
  args.inverse = inverse;
  args.compute = compute_dtype(compute_dtype(dtype_of(x), dtype_of(shift)), dtype_of(log_scale));
  args.shift = channels_of(shift);
  args.log_scale = channels_of(log_scale);
}

void check(const Tensor& x, const Tensor& shift, const Tensor& log_scale) {
  STD_TORCH_CHECK(x.dim() >= 2, "x: expected (B, C, *S)");
  for (const Tensor& tensor : {shift, log_scale}) {
    STD_TORCH_CHECK(tensor.dim() == 1 && tensor.size(0) == x.size(1) && same_device(tensor, x),
                    "shift and log_scale: expected (C,) on the device of x");
  }
}

std::tuple<Tensor, Tensor> forward(const Tensor& x, const Tensor& shift, const Tensor& log_scale,
                                   bool inverse) {
  check(x, shift, log_scale);
  Tensor y = empty_as(x, sizes_of(x));
  RowWalk walk(x);
  ActNorm args{};
  const Tensor x_in = walk.add(x, args.x);
  walk.add(y, args.y);
  describe(args, x, shift, log_scale, inverse, walk);
  Tensor log_det = empty_contiguous(x, {args.batch}, scalar_type(args.compute));
  args.log_det = log_det.data_ptr();
  GMFAST_RUN(actnorm, x, args);
  return {y, log_det};
}

std::tuple<Tensor, Tensor, Tensor> backward(const std::optional<Tensor>& grad_y,
                                            const std::optional<Tensor>& grad_log_det,
                                            const Tensor& x, const Tensor& shift,
                                            const Tensor& log_scale, bool inverse, bool want_x,
                                            bool want_channels) {
  check(x, shift, log_scale);
  RowWalk walk(x);
  ActNormBackward args{};
  Tensor grad_in;
  const Tensor x_in = walk.add(x, args.x);
  if (grad_y) {
    check_like("grad_y", *grad_y, x, sizes_of(x));
    grad_in = walk.add(*grad_y, args.grad_y);
  }
  Tensor grad_x = empty_as(x, want_x ? sizes_of(x) : Sizes{0});
  if (want_x) walk.add(grad_x, args.grad_x);
  Tensor grad_shift = empty_contiguous(shift, {want_channels ? x.size(1) : 0}, shift.scalar_type());
  Tensor grad_log_scale =
      empty_contiguous(log_scale, {want_channels ? x.size(1) : 0}, log_scale.scalar_type());
  if (want_channels) {
    args.grad_shift = channels_of(grad_shift);
    args.grad_log_scale = channels_of(grad_log_scale);
  }
  describe(args, x, shift, log_scale, inverse, walk);
  if (grad_log_det) {
    STD_TORCH_CHECK(grad_log_det->dim() == 1 && grad_log_det->size(0) == args.batch &&
                        dtype_of(*grad_log_det) == args.compute && same_device(*grad_log_det, x),
                    "grad_log_det: expected (B,) in the dtype of log_det");
    args.grad_log_det = grad_log_det->data_ptr();
    args.grad_log_det_stride = grad_log_det->stride(0);
  }
  Tensor scratch;
  if (want_channels && x.is_cuda()) {
    args.sum = ChannelSum(args.shape, args.channels_inner);
    scratch = scratch_for(x, args.sum.scratch_bytes());
    args.sum.scratch = static_cast<double*>(scratch.data_ptr());
  }
  GMFAST_RUN(actnorm_backward, x, args);
  return {grad_x, grad_shift, grad_log_scale};
}

}  // namespace
}  // namespace gmfast

STABLE_TORCH_LIBRARY_FRAGMENT(gmfast, m) {
  m.def("actnorm(Tensor x, Tensor shift, Tensor log_scale, bool inverse) -> (Tensor, Tensor)");
  m.def(
      "actnorm_backward(Tensor? grad_y, Tensor? grad_log_det, Tensor x, Tensor shift, "
      "Tensor log_scale, bool inverse, bool want_x, bool want_channels) "
      "-> (Tensor, Tensor, Tensor)");
}

GMFAST_REGISTER(m) {
  m.impl("actnorm", TORCH_BOX(&gmfast::forward));
  m.impl("actnorm_backward", TORCH_BOX(&gmfast::backward));
}
