#include "../args/diffusion_hybrid_loss.h"

#include "../math/diffusion_hybrid_loss.h"
#include "rows.h"

namespace gmfast {
inline namespace GMFAST_LEVEL {
namespace {

constexpr double log_2 = 0.69314718055994530942;

template <class S>
HybridCoefficients<S> coefficients_of(const DiffusionHybridLossInputs& in, int64_t sample) {
  return {in.table, in.row_stride, in.column_stride, in.steps,
          in.timestep[sample * in.timestep_stride]};
}

template <class S>
void forward(const DiffusionHybridLoss& args) {
  using V = Native<S>;
  const DiffusionHybridLossInputs& in = args.in;
  const GaussianLevels<V> levels(in.num_classes);
  const auto rows = [&](RowPlace at) {
    return [row = coefficients_of<S>(in, at.sample), epsilon = RowReader<V>(in.epsilon, at),
            v = RowReader<V>(in.v, at), x0 = RowReader<V>(in.x0, at),
            x_t = RowReader<V>(in.x_t, at), noise = RowReader<V>(in.noise, at), &levels,
            exact = in.exact](int64_t i, auto span, V(&terms)[2]) {
      const HybridTerms<V> both =
          hybrid_terms(row, exact, levels, epsilon.load(i, span), v.load(i, span), x0.load(i, span),
                       x_t.load(i, span), noise.load(i, span));
      terms[0] = both.simple;
      terms[1] = both.bound;
    };
  };
  sum_samples<V, 2>(in.shape, rows, [&](int64_t sample, const double (&sums)[2]) {
    static_cast<S*>(args.simple)[sample] = S(sums[0] / double(in.elements));
    static_cast<S*>(args.bound)[sample] = S(sums[1] / (log_2 * double(in.elements)));
  });
}

template <class S>
void backward(const DiffusionHybridLossBackward& args) {
  using V = Native<S>;
  const DiffusionHybridLossInputs& in = args.in;
  const GaussianLevels<V> levels(in.num_classes);
  const auto gradient = [&](const void* data, int64_t offset, double divisor) {
    const double elements = double(in.elements);
    return S(data ? double(static_cast<const S*>(data)[offset]) / elements / divisor : 0);
  };
  for_each_row<V>(in.shape, [&](RowPlace at) {
    return [row = coefficients_of<S>(in, at.sample), epsilon = RowReader<V>(in.epsilon, at),
            v = RowReader<V>(in.v, at), x0 = RowReader<V>(in.x0, at),
            x_t = RowReader<V>(in.x_t, at), noise = RowReader<V>(in.noise, at),
            to_epsilon = RowWriter<V>(args.grad_epsilon, at), to_v = RowWriter<V>(args.grad_v, at),
            simple = gradient(args.grad_simple, at.sample * args.grad_simple_stride, 1),
            bound = gradient(args.grad_bound, at.sample * args.grad_bound_stride, log_2), &levels,
            exact = in.exact](int64_t i, auto span) {
      V by_epsilon, by_v;
      hybrid_backward(row, exact, levels, epsilon.load(i, span), v.load(i, span), x0.load(i, span),
                      x_t.load(i, span), noise.load(i, span), by_epsilon, by_v);
      to_epsilon.store(i, span, splat<V>(simple) * by_epsilon);
      to_v.store(i, span, splat<V>(bound) * by_v);
    };
  });
}

}  // namespace
}  // namespace GMFAST_LEVEL

GMFAST_DEFINE_CPU_KERNEL(diffusion_hybrid_loss, DiffusionHybridLoss) {
  args.in.compute == DType::float64 ? forward<double>(args) : forward<float>(args);
}

GMFAST_DEFINE_CPU_KERNEL(diffusion_hybrid_loss_backward, DiffusionHybridLossBackward) {
  args.in.compute == DType::float64 ? backward<double>(args) : backward<float>(args);
}

}  // namespace gmfast
