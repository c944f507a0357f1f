#include "../args/q_sample.h"

#include <tuple>

#include "backend.h"
#include "noise.h"

namespace gmfast {
namespace {

DType compute_of(const Tensor& x, const Optional& noise) {
  return compute_dtype(dtype_of(x), noise ? dtype_of(*noise) : DType::float32);
}

NoiseTarget target_of(int64_t target) {
  STD_TORCH_CHECK(target >= 0 && target <= 3, "target: expected 0 to 3");
  return NoiseTarget(target);
}

// The noised data and the target, of no elements where there is none.
std::tuple<Tensor, Tensor> forward(const Tensor& x_given, const Optional& noise,
                                   const Optional& alphas, const Optional& sigmas,
                                   const Optional& seed, double alpha, double sigma, int64_t target,
                                   int64_t first) {
  // Rows that are a pixel each would have their noise drawn one by one.
  const Tensor x = in_order(x_given, !noise && !dense_channels_last(x_given));
  RowWalk walk(x);
  QSample args{};
  if (!noise && channels_innermost(x)) args.noise.channels = x.size(1);
  const Tensor x_in = walk.add(x, args.x),
               noise_in = add_noise(walk, x, noise, seed, first, args.noise);
  args.compute = compute_of(x, noise);
  args.alpha = per_sample("alpha", alphas, alpha, x);
  args.sigma = per_sample("sigma", sigmas, sigma, x);
  args.target = target_of(target);
  Tensor noised = empty_as(x, sizes_of(x));
  walk.add(noised, args.noised);
  const bool wanted = args.target != NoiseTarget::none;
  Tensor result = empty_as(x, wanted ? sizes_of(x) : Sizes{0});
  if (wanted) walk.add(result, args.result);
  args.shape = walk.merged_shape();
  GMFAST_RUN(q_sample, x, args);
  return {laid_out(noised, x_given), laid_out(result, x_given)};
}

// By x and by noise, in their dtypes; of no elements where not wanted.
std::tuple<Tensor, Tensor> backward(const Optional& grad_noised, const Optional& grad_target,
                                    const Tensor& x, const Optional& noise, const Optional& alphas,
                                    const Optional& sigmas, const Optional&, double alpha,
                                    double sigma, int64_t target, int64_t, bool want_x,
                                    bool want_noise) {
  RowWalk walk(x);
  QSample args{};
  args.backward = true;
  args.compute = compute_of(x, noise);
  Tensor noised_in, target_in;
  if (grad_noised) {
    check_operand("grad_noised", *grad_noised, x, sizes_of(x), args.compute);
    noised_in = walk.add(*grad_noised, args.x);
  }
  args.target = target_of(target);
  // Of noise drawn nothing is asked, and given noise is nobody's target.
  if (args.target == NoiseTarget::epsilon) args.target = NoiseTarget::none;
  if (grad_target && args.target != NoiseTarget::none) {
    check_operand("grad_target", *grad_target, x, sizes_of(x), args.compute);
    target_in = walk.add(*grad_target, args.noise.given);
  }
  args.alpha = per_sample("alpha", alphas, alpha, x);
  args.sigma = per_sample("sigma", sigmas, sigma, x);
  const auto gradient = [&](const Tensor& of, bool wanted, RowOperand& operand) {
    Tensor result = empty_as(x, wanted ? sizes_of(x) : Sizes{0}, of.scalar_type());
    if (wanted) walk.add(result, operand);
    return result;
  };
  Tensor grad_x = gradient(x, want_x, args.noised);
  Tensor grad_noise = gradient(noise ? *noise : x, want_noise && noise, args.result);
  args.shape = walk.merged_shape();
  GMFAST_RUN(q_sample, x, args);
  return {grad_x, grad_noise};
}

}  // namespace
}  // namespace gmfast

STABLE_TORCH_LIBRARY_FRAGMENT(gmfast, m) {
  m.def(
      "q_sample(Tensor x, Tensor? noise, Tensor? alphas, Tensor? sigmas, Tensor? seed, "
      "float alpha, float sigma, int target, int first=0) -> (Tensor, Tensor)");
  m.def(
      "q_sample_backward(Tensor? grad_noised, Tensor? grad_target, Tensor x, Tensor? noise, "
      "Tensor? alphas, Tensor? sigmas, Tensor? seed, float alpha, float sigma, int target, "
      "int first, bool want_x, bool want_noise) -> (Tensor, Tensor)");
}

GMFAST_REGISTER(m) {
  m.impl("q_sample", TORCH_BOX(&gmfast::forward));
  m.impl("q_sample_backward", TORCH_BOX(&gmfast::backward));
}
