#include "../args/q_sample.h"
#include "../math/q_sample.h"
#include "noise.h"

namespace gmfast {
namespace {

struct Sample {
  template <class S>
  GMFAST_DEVICE static NoiseWeights<S> begin(const QSample& args, int64_t sample) {
    const auto w =
        noise_weights<S>(number_of(args.alpha, sample), number_of(args.sigma, sample), args.target);
    return args.backward ? transposed(w) : w;
  }
  template <class S>
  GMFAST_DEVICE static void apply(const QSample& args, const NoiseWeights<S>& w,
                                  const RowElement& at, S z) {
    const S x = read_row<S>(args.x, at);
    write_row(args.noised, at, weighted(w.first_x, x, w.first_z, z));
    const bool epsilon = args.target == NoiseTarget::epsilon;
    write_row(args.result, at, epsilon ? z : weighted(w.second_x, x, w.second_z, z));
  }
};

}  // namespace

void q_sample_cuda(const QSample& args, void* stream) {
  args.compute == DType::float64
      ? launch_noisy_rows<Sample, double>(args, args.noise, args.shape, stream)
      : launch_noisy_rows<Sample, float>(args, args.noise, args.shape, stream);
}

}  // namespace gmfast
