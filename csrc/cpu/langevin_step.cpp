#include "../args/langevin_step.h"

#include <cmath>

#include "../math/langevin_step.h"
#include "noise.h"

namespace gmfast {
inline namespace GMFAST_LEVEL {
namespace {

double mean_norm(const double* squares, int64_t batch) {
  double total = 0;
  for (int64_t b = 0; b < batch; ++b) total += std::sqrt(squares[b]);
  return total / double(batch);
}

// Where the results hold what is computed in, `kept` takes the noise drawn for its norm.
template <class V>
double step_size(const LangevinStep& args, const RowOperand& kept) {
  const int64_t batch = args.shape.batch;
  Scratch<double> squares(2 * batch);
  double *of_noise = squares.get(), *of_score = of_noise + batch;
  // In double: a square of a float may be beyond floats.
  const auto add_up = [&](const RowOperand& operand, double* totals) {
    using D = Native<double>;
    const auto add = [&](auto reader_of) {
      sum_samples<D>(args.shape, 1, 0, totals, [&](RowPlace at) {
        return [row = reader_of(at)](int64_t i, auto span) {
          const D value = row.load(i, span);
          return value * value;
        };
      });
    };
    if (operand.inner_stride == 0) {
      return add([&](RowPlace at) { return RowReader<D>(operand, at); });
    }
    with_type(operand.dtype, [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      add([&](RowPlace at) { return DenseRow<D, T>(operand, at); });
    });
  };
  add_up(args.score, of_score);
  if (args.noise.drawn()) {
    sum_samples<V>(args.shape, 1, 0, of_noise, [&](RowPlace at) {
      return [noise = DrawnReader<V>(args.noise, args.shape, at), to = RowWriter<V>(kept, at)](
                 int64_t i, auto span) {
        const V value = noise.load(i, span);
        if (to) to.store(i, span, value);
        return value * value;
      };
    });
  } else {
    add_up(args.noise.given, of_noise);
  }
  return adaptive_step(args.step.value, args.alpha, mean_norm(of_noise, batch),
                       mean_norm(of_score, batch));
}

template <class S>
void run(const LangevinStep& args) {
  using V = Native<S>;
  Noise noise = args.noise;
  PerSample steps = args.step;
  if (args.adaptive) {
    const DType own = is_single<V> ? DType::float32 : DType::float64;
    const bool keep = noise.drawn() && args.moved.dtype == own;
    steps.value = step_size<V>(args, keep ? args.moved : RowOperand());
    if (keep) noise.given = args.moved;
  }
  const auto rows = [&](auto types, auto noise_of) {
    using Types = decltype(types);
    for_each_row<V>(args.shape, [&](RowPlace at) {
      const auto w = langevin_weights<S>(number_of(steps, at.sample), args.temperature);
      return [w, x = typename Types::In(args.x, at), score = typename Types::In(args.score, at),
              z = noise_of(at), moved = typename Types::Out(args.moved, at),
              mean = typename Types::Out(args.mean, at)](int64_t i, auto span) {
        const V along = fma(splat<V>(w.step), score.load(i, span), x.load(i, span));
        const V number = z.load(i, span);
        moved.store(i, span, fma(splat<V>(w.spread), number, along));
        if (mean) mean.store(i, span, along);
      };
    });
  };
  with_rows<V>(
      [&](auto types) {
        using In = typename decltype(types)::In;
        if (noise.drawn()) {
          rows(types, [&](RowPlace at) { return DrawnReader<V>(noise, args.shape, at); });
        } else {
          rows(types, [&](RowPlace at) { return In(noise.given, at); });
        }
      },
      args.x, args.score, noise.given, args.moved, args.mean);
}

}  // namespace
}  // namespace GMFAST_LEVEL

GMFAST_DEFINE_CPU_KERNEL(langevin_step, LangevinStep) {
  args.compute == DType::float64 ? run<double>(args) : run<float>(args);
}

}  // namespace gmfast
