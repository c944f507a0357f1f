#include "../args/langevin_step.h"
#include "../math/langevin_step.h"
#include "noise.h"
#include "sample_sum.h"

namespace gmfast {
namespace {

// The squares of the noise of a sample are those of "sample" b, of its score those of batch + b.
template <class S, bool drawn>
__global__ void __launch_bounds__(sample_sum_threads)
    squares_kernel(LangevinStep args, SampleSum sum) {
  const SampleShare share(sum);
  const bool of_noise = share.sample < args.shape.batch;
  const int64_t sample = of_noise ? share.sample : share.sample - args.shape.batch;
  const int64_t elements = args.shape.rows * args.shape.inner;
  double partial = 0;
  for (int64_t item = share.first; item < share.end; item += share.step) {
    if constexpr (drawn) {
      Numbers<S> numbers;
      if (of_noise) numbers = normals<S>(stream_of(args.noise, sample), uint64_t(item));
      GMFAST_UNROLL
      for (int slot = 0; slot < numbers_per_block<S>; ++slot) {
        const int64_t index = item / 16 * noise_tile<S> + slot * 16 + item % 16;
        if (index >= elements) break;
        const RowElement at = element_of(args.shape, sample, index);
        const double value = of_noise ? numbers.value[slot] : read_row<S>(args.score, at);
        partial += value * value;
      }
    } else {
      const RowElement at = element_of(args.shape, sample, item);
      const double value = read_row<S>(of_noise ? args.noise.given : args.score, at);
      partial += value * value;
    }
  }
  sum_of_sample(sum, share, partial, [&](double total) { args.norms[share.sample] = total; });
}

__global__ void __launch_bounds__(row_threads) step_kernel(LangevinStep args) {
  const int64_t batch = args.shape.batch;
  double noise = 0, score = 0;
  for (int64_t b = thread_index(); b < batch; b += row_threads) {
    noise += sqrt(args.norms[b]);
    score += sqrt(args.norms[batch + b]);
  }
  noise = block_sum<row_threads>(noise) / double(batch);
  score = block_sum<row_threads>(score) / double(batch);
  if (thread_index() == 0) {
    args.norms[2 * batch] = adaptive_step(args.step.value, args.alpha, noise, score);
  }
}

struct Move {
  template <class S>
  GMFAST_DEVICE static LangevinWeights<S> begin(const LangevinStep& args, int64_t sample) {
    return langevin_weights<S>(number_of(args.step, sample), args.temperature);
  }
  template <class S>
  GMFAST_DEVICE static void apply(const LangevinStep& args, const LangevinWeights<S>& w,
                                  const RowElement& at, S z) {
    const S along = fma(w.step, read_row<S>(args.score, at), read_row<S>(args.x, at));
    write_row(args.moved, at, fma(w.spread, z, along));
    write_row(args.mean, at, along);
  }
};

template <class S>
void run(LangevinStep args, void* stream) {
  if (args.adaptive) {
    launch_sample_sum(args.noise.drawn() ? squares_kernel<S, true> : squares_kernel<S, false>,
                      args.sum, stream, args);
    launch(step_kernel, args.shape.batch ? 1 : 0, row_threads, 0, stream, args);
    args.step = {args.norms + 2 * args.shape.batch, DType::float64, 0, 0};
  }
  launch_noisy_rows<Move, S>(args, args.noise, args.shape, stream);
}

}  // namespace

void langevin_step_cuda(const LangevinStep& args, void* stream) {
  args.compute == DType::float64 ? run<double>(args, stream) : run<float>(args, stream);
}

}  // namespace gmfast
