#include "../args/diffusion_hybrid_loss.h"
#include "../math/diffusion_hybrid_loss.h"
#include "rows.h"
#include "sample_sum.h"

namespace gmfast {
namespace {

constexpr double log_2 = 0.69314718055994530942;

template <class S>
GMFAST_DEVICE HybridCoefficients<S> coefficients_of(const DiffusionHybridLossInputs& in,
                                                    int64_t sample) {
  return {in.table, in.row_stride, in.column_stride, in.steps,
          in.timestep[sample * in.timestep_stride]};
}

template <class S>
__global__ void __launch_bounds__(sample_sum_threads, 2)
    forward_kernel(DiffusionHybridLoss args, GaussianLevels<S> levels, SampleSum sum) {
  const SampleShare share(sum);
  const DiffusionHybridLossInputs& in = args.in;
  double partial[2] = {0, 0};
  if (share.first < share.end) {
    const HybridCoefficients<S> row = coefficients_of<S>(in, share.sample);
    for (int64_t index = share.first; index < share.end; index += share.step) {
      const RowElement at = element_of(in.shape, share.sample, index);
      const HybridTerms<S> terms =
          hybrid_terms(row, in.exact, levels, read_row<S>(in.epsilon, at), read_row<S>(in.v, at),
                       read_row<S>(in.x0, at), read_row<S>(in.x_t, at), read_row<S>(in.noise, at));
      partial[0] += terms.simple;
      partial[1] += terms.bound;
    }
  }
  sum_of_sample<2>(sum, share, partial, [&](const double (&totals)[2]) {
    static_cast<S*>(args.simple)[share.sample] = S(totals[0] / double(in.elements));
    static_cast<S*>(args.bound)[share.sample] = S(totals[1] / (log_2 * double(in.elements)));
  });
}

template <class S>
struct BackwardArgs {
  DiffusionHybridLossBackward args;
  GaussianLevels<S> levels;
};

struct Backward {
  template <class S>
  GMFAST_DEVICE static void apply(const BackwardArgs<S>& all, const RowElement& at) {
    const DiffusionHybridLossBackward& args = all.args;
    const DiffusionHybridLossInputs& in = args.in;
    S by_epsilon, by_v;
    hybrid_backward(coefficients_of<S>(in, at.sample), in.exact, all.levels,
                    read_row<S>(in.epsilon, at), read_row<S>(in.v, at), read_row<S>(in.x0, at),
                    read_row<S>(in.x_t, at), read_row<S>(in.noise, at), by_epsilon, by_v);
    const auto gradient = [&](const void* data, int64_t offset, double divisor) {
      if (!data) return S(0);
      return S(double(static_cast<const S*>(data)[offset]) / double(in.elements) / divisor);
    };
    by_epsilon *= gradient(args.grad_simple, at.sample * args.grad_simple_stride, 1);
    by_v *= gradient(args.grad_bound, at.sample * args.grad_bound_stride, log_2);
    write_row(args.grad_epsilon, at, by_epsilon);
    write_row(args.grad_v, at, by_v);
  }
};

template <class S>
void forward(const DiffusionHybridLoss& args, void* stream) {
  launch_sample_sum(forward_kernel<S>, args.sum, stream, args,
                    GaussianLevels<S>(args.in.num_classes));
}

template <class S>
void backward(const DiffusionHybridLossBackward& args, void* stream) {
  const BackwardArgs<S> all{args, GaussianLevels<S>(args.in.num_classes)};
  launch_rows<Backward, S>(all, args.in.shape, stream);
}

}  // namespace

void diffusion_hybrid_loss_cuda(const DiffusionHybridLoss& args, void* stream) {
  args.in.compute == DType::float64 ? forward<double>(args, stream) : forward<float>(args, stream);
}

void diffusion_hybrid_loss_backward_cuda(const DiffusionHybridLossBackward& args, void* stream) {
  args.in.compute == DType::float64 ? backward<double>(args, stream)
                                    : backward<float>(args, stream);
}

}  // namespace gmfast
