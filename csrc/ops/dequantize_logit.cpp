#include "../args/dequantize_logit.h"

#include <tuple>

#include "backend.h"
#include "noise.h"

namespace gmfast {
namespace {

LevelType level_type(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Byte:
      return LevelType::uint8;
    case ScalarType::Short:
      return LevelType::int16;
    case ScalarType::Int:
      return LevelType::int32;
    case ScalarType::Long:
      return LevelType::int64;
    default:
      return LevelType::floating;
  }
}

// The inputs, all but the walk's shape. Returns what they point into.
std::tuple<Tensor, Tensor> add_inputs(RowWalk& walk, DequantizeLogitInputs& in, const Tensor& x,
                                      const Optional& noise, const Optional& seed,
                                      int64_t num_levels, double alpha, bool inverse, bool quantize,
                                      int64_t first) {
  in.alpha = alpha;
  in.num_levels = double(num_levels);
  in.inverse = inverse;
  in.quantize = quantize;
  in.x_type = level_type(x);
  const bool floating = in.x_type == LevelType::floating;
  STD_TORCH_CHECK(floating || !inverse, "x: expected a floating tensor");
  in.compute = floating ? compute_dtype(dtype_of(x)) : DType::float32;
  const Tensor x_in = floating ? walk.add(x, in.x) : walk.place(x, in.x);
  Tensor noise_in;
  if (noise) {
    STD_TORCH_CHECK(sizes_of(*noise) == sizes_of(x) && same_device(*noise, x),
                    "noise: expected the shape and device of x");
    noise_in = walk.add(*noise, in.noise);
    in.compute = compute_dtype(in.compute, in.noise.dtype);
  } else if (!inverse) {
    STD_TORCH_CHECK(seed && seed->dim() == 0, "expected noise or a seed, int64 ()");
    in.seeds = seeds_of(*seed, x, x.size(0), first);
  }
  return {x_in, noise_in};
}

std::tuple<Tensor, Tensor> forward(const Tensor& x_given, const Optional& noise,
                                   const Optional& seed, int64_t num_levels, double alpha,
                                   bool inverse, bool quantize, int64_t first) {
  const Tensor x = in_order(x_given, !inverse && !noise);
  RowWalk walk(x);
  DequantizeLogit args{};
  const auto kept =
      add_inputs(walk, args.in, x, noise, seed, num_levels, alpha, inverse, quantize, first);
  const ScalarType dtype = args.in.x_type == LevelType::floating ? x.scalar_type()
                           : noise                               ? noise->scalar_type()
                                                                 : ScalarType::Float;
  Tensor y = empty_as(x, sizes_of(x), dtype);
  walk.add(y, args.y);
  args.in.shape = walk.merged_shape();
  args.elements = args.in.shape.rows * args.in.shape.inner;
  Tensor log_det = empty_contiguous(x, {x.size(0)}, scalar_type(args.in.compute));
  args.log_det = log_det.data_ptr();
  Tensor scratch;
  if (x.is_cuda()) {
    // Where noise is drawn an item is a block of it.
    const int64_t tile = 16 * (args.in.compute == DType::float64 ? 2 : 4);
    const bool drawn = args.in.seeds.data;
    const int64_t items = drawn ? (args.elements + tile - 1) / tile * 16 : args.elements;
    args.sum = SampleSum(args.in.shape.batch, items, drawn ? 8 : 32);
    scratch = scratch_for(x, args.sum.scratch_bytes());
    args.sum.scratch = scratch.data_ptr();
  }
  GMFAST_RUN(dequantize_logit, x, args);
  return {laid_out(y, x_given), log_det};
}

// By x and by noise, of no elements where not wanted.
std::tuple<Tensor, Tensor> backward(const Optional& grad_y, const Optional& grad_log_det,
                                    const Tensor& x_given, const Optional& noise,
                                    const Optional& seed, int64_t num_levels, double alpha,
                                    bool inverse, bool quantize, int64_t first, bool want_x,
                                    bool want_noise) {
  const Tensor x = in_order(x_given, !inverse && !noise);
  RowWalk walk(x);
  DequantizeLogitBackward args{};
  const auto kept =
      add_inputs(walk, args.in, x, noise, seed, num_levels, alpha, inverse, quantize, first);
  Tensor grad_in;
  if (grad_y) {
    check_operand("grad_y", *grad_y, x, sizes_of(x), args.in.compute);
    grad_in = walk.add(*grad_y, args.grad_y);
  }
  if (grad_log_det) {
    STD_TORCH_CHECK(grad_log_det->dim() == 1 && grad_log_det->size(0) == x.size(0) &&
                        dtype_of(*grad_log_det) == args.in.compute && same_device(*grad_log_det, x),
                    "grad_log_det: expected (B,) in the dtype of log_det");
    args.grad_log_det = grad_log_det->data_ptr();
    args.grad_log_det_stride = grad_log_det->stride(0);
  }
  const auto gradient = [&](const Tensor& of, bool wanted, RowOperand& operand) {
    Tensor result = empty_as(x, wanted ? sizes_of(x) : Sizes{0}, of.scalar_type());
    if (wanted) walk.add(result, operand);
    return result;
  };
  Tensor grad_x = gradient(x, want_x, args.grad_x);
  Tensor grad_noise = gradient(noise ? *noise : x, want_noise && noise, args.grad_noise);
  args.in.shape = walk.merged_shape();
  GMFAST_RUN(dequantize_logit_backward, x, args);
  return {laid_out(grad_x, x_given), laid_out(grad_noise, x_given)};
}

}  // namespace
}  // namespace gmfast

STABLE_TORCH_LIBRARY_FRAGMENT(gmfast, m) {
  m.def(
      "dequantize_logit(Tensor x, Tensor? noise, Tensor? seed, int num_levels, float alpha, "
      "bool inverse, bool quantize, int first=0) -> (Tensor, Tensor)");
  m.def(
      "dequantize_logit_backward(Tensor? grad_y, Tensor? grad_log_det, Tensor x, Tensor? noise, "
      "Tensor? seed, int num_levels, float alpha, bool inverse, bool quantize, int first, "
      "bool want_x, bool want_noise) -> (Tensor, Tensor)");
}

GMFAST_REGISTER(m) {
  m.impl("dequantize_logit", TORCH_BOX(&gmfast::forward));
  m.impl("dequantize_logit_backward", TORCH_BOX(&gmfast::backward));
}
