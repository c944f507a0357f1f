#include "../args/diffusion_hybrid_loss.h"

#include <optional>
#include <tuple>
#include <vector>

#include "backend.h"
#include "rows.h"

namespace gmfast {
namespace {

using Optional = std::optional<Tensor>;

Tensor half_of(const Tensor& output, int which) {
  Tensor whole = output;
  const int64_t channels = output.size(1) / 2;
  return torch::stable::narrow(whole, 1, which * channels, channels);
}

// What both directions begin with. Returns what the operands point into.
std::vector<Tensor> add_inputs(RowWalk& walk, DiffusionHybridLossInputs& in, const Tensor& output,
                               const Tensor& x0, const Tensor& x_t, const Tensor& noise,
                               const Tensor& table, const Tensor& timestep, int64_t num_classes,
                               bool exact) {
  in.compute = compute_dtype(dtype_of(output));
  for (const Tensor* tensor : {&x0, &x_t, &noise}) {
    in.compute = compute_dtype(in.compute, dtype_of(*tensor));
    STD_TORCH_CHECK(same_device(*tensor, output) && tensor->dim() == output.dim() &&
                        tensor->numel() * 2 == output.numel(),
                    "expected x0, x_t and noise of half the channels of model_output");
  }
  STD_TORCH_CHECK(table.dim() == 2 && table.size(1) >= 20 && dtype_of(table) == DType::float64 &&
                      same_device(table, output),
                  "table: expected float64 (T, 20)");
  STD_TORCH_CHECK(timestep.dim() == 1 && timestep.size(0) == output.size(0) &&
                      timestep.scalar_type() == ScalarType::Long && same_device(timestep, output),
                  "timestep: expected int64 (B,)");
  STD_TORCH_CHECK(num_classes >= 2, "num_classes: expected at least 2");
  in.num_classes = num_classes;
  in.exact = exact;
  in.table = static_cast<const double*>(table.data_ptr());
  in.row_stride = table.stride(0);
  in.column_stride = table.stride(1);
  in.steps = table.size(0);
  in.timestep = static_cast<const int64_t*>(timestep.data_ptr());
  in.timestep_stride = timestep.stride(0);
  return {walk.add(half_of(output, 0), in.epsilon), walk.add(half_of(output, 1), in.v),
          walk.add(x0, in.x0), walk.add(x_t, in.x_t), walk.add(noise, in.noise)};
}

void set_shape(const RowWalk& walk, DiffusionHybridLossInputs& in) {
  in.shape = walk.merged_shape();
  in.elements = in.shape.rows * in.shape.inner;
}

void check_output(const Tensor& output) {
  STD_TORCH_CHECK(output.dim() >= 2 && output.size(1) % 2 == 0,
                  "model_output: expected (B, 2C, *S)");
}

std::tuple<Tensor, Tensor> forward(const Tensor& output, const Tensor& x0, const Tensor& x_t,
                                   const Tensor& noise, const Tensor& table, const Tensor& timestep,
                                   int64_t num_classes, bool exact) {
  check_output(output);
  RowWalk walk(half_of(output, 0));
  DiffusionHybridLoss args{};
  const auto kept =
      add_inputs(walk, args.in, output, x0, x_t, noise, table, timestep, num_classes, exact);
  set_shape(walk, args.in);
  const ScalarType dtype = scalar_type(args.in.compute);
  Tensor simple = empty_contiguous(output, {output.size(0)}, dtype);
  Tensor bound = empty_contiguous(output, {output.size(0)}, dtype);
  args.simple = simple.data_ptr();
  args.bound = bound.data_ptr();
  Tensor scratch;
  if (output.is_cuda()) {
    args.sum = SampleSum(args.in.shape.batch, args.in.elements, 8, 2);
    scratch = scratch_for(output, args.sum.scratch_bytes());
    args.sum.scratch = scratch.data_ptr();
  }
  GMFAST_RUN(diffusion_hybrid_loss, output, args);
  return {simple, bound};
}

Tensor backward(const Optional& grad_simple, const Optional& grad_bound, const Tensor& output,
                const Tensor& x0, const Tensor& x_t, const Tensor& noise, const Tensor& table,
                const Tensor& timestep, int64_t num_classes, bool exact) {
  check_output(output);
  RowWalk walk(half_of(output, 0));
  DiffusionHybridLossBackward args{};
  const auto kept =
      add_inputs(walk, args.in, output, x0, x_t, noise, table, timestep, num_classes, exact);
  const auto add_gradient = [&](const char* name, const Optional& grad, const void*& data,
                                int64_t& stride) {
    if (!grad) return;
    STD_TORCH_CHECK(grad->dim() == 1 && grad->size(0) == output.size(0) &&
                        dtype_of(*grad) == args.in.compute && same_device(*grad, output),
                    name, ": expected (B,) in the dtype of the results");
    data = grad->data_ptr();
    stride = grad->stride(0);
  };
  add_gradient("grad_simple", grad_simple, args.grad_simple, args.grad_simple_stride);
  add_gradient("grad_bound", grad_bound, args.grad_bound, args.grad_bound_stride);
  // Laid out in the order of the walk, so its halves are written in place.
  Tensor grad = empty_as(output, sizes_of(output));
  walk.add(half_of(grad, 0), args.grad_epsilon);
  walk.add(half_of(grad, 1), args.grad_v);
  set_shape(walk, args.in);
  GMFAST_RUN(diffusion_hybrid_loss_backward, output, args);
  return grad;
}

}  // namespace
}  // namespace gmfast

STABLE_TORCH_LIBRARY_FRAGMENT(gmfast, m) {
  m.def(
      "diffusion_hybrid_loss(Tensor model_output, Tensor x0, Tensor x_t, Tensor noise, "
      "Tensor table, Tensor timestep, int num_classes, bool exact) -> (Tensor, Tensor)");
  m.def(
      "diffusion_hybrid_loss_backward(Tensor? grad_simple, Tensor? grad_bound, "
      "Tensor model_output, Tensor x0, Tensor x_t, Tensor noise, Tensor table, Tensor timestep, "
      "int num_classes, bool exact) -> Tensor");
}

GMFAST_REGISTER(m) {
  m.impl("diffusion_hybrid_loss", TORCH_BOX(&gmfast::forward));
  m.impl("diffusion_hybrid_loss_backward", TORCH_BOX(&gmfast::backward));
}
