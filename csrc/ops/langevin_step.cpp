#include "../args/langevin_step.h"

#include <tuple>

#include "backend.h"
#include "noise.h"

namespace gmfast {
namespace {

// The new x, and x without the noise, of no elements where not wanted. `step` is the step size
// where there are no `steps` (B,), or with `adaptive` the signal-to-noise ratio.
std::tuple<Tensor, Tensor> langevin_step(const Tensor& x_given, const Tensor& score,
                                         const Optional& noise, const Optional& seed,
                                         const Optional& steps, double step, bool adaptive,
                                         double alpha, double temperature, int64_t draw,
                                         bool want_mean, int64_t first) {
  const Tensor x = in_order(x_given, !noise);
  RowWalk walk(x);
  LangevinStep args{};
  const Tensor x_in = walk.add(x, args.x),
               score_in = add_whole("score", walk, x, score, args.score),
               noise_in = add_noise(walk, x, noise, seed, first, args.noise);
  args.compute = compute_dtype(dtype_of(x), dtype_of(score));
  if (noise) args.compute = compute_dtype(args.compute, dtype_of(*noise));
  STD_TORCH_CHECK(!(adaptive && steps), "step_size: expected none with snr");
  args.noise.draw = uint32_t(draw);
  args.step = per_sample("step_size", steps, step, x);
  args.adaptive = adaptive;
  args.alpha = alpha;
  args.temperature = temperature;
  Tensor moved = empty_as(x, sizes_of(x));
  walk.add(moved, args.moved);
  Tensor mean = empty_as(x, want_mean ? sizes_of(x) : Sizes{0});
  if (want_mean) walk.add(mean, args.mean);
  args.shape = walk.merged_shape();
  Tensor scratch;
  if (adaptive && x.is_cuda()) {
    args.sum = langevin_sum(args.shape, args.compute, args.noise.drawn());
    const int64_t norms = 2 * args.shape.batch + 1;
    scratch = scratch_for(x, norms * 8 + args.sum.scratch_bytes());
    args.norms = static_cast<double*>(scratch.data_ptr());
    args.sum.scratch = args.norms + norms;
  }
  GMFAST_RUN(langevin_step, x, args);
  return {laid_out(moved, x_given), laid_out(mean, x_given)};
}

}  // namespace
}  // namespace gmfast

STABLE_TORCH_LIBRARY_FRAGMENT(gmfast, m) {
  m.def(
      "langevin_step(Tensor x, Tensor score, Tensor? noise, Tensor? seed, Tensor? steps, "
      "float step, bool adaptive, float alpha, float temperature, int draw, bool want_mean, "
      "int first=0) -> (Tensor, Tensor)");
}

GMFAST_REGISTER(m) { m.impl("langevin_step", TORCH_BOX(&gmfast::langevin_step)); }
