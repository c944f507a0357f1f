#include "../args/q_sample.h"

#include "../math/q_sample.h"
#include "noise.h"

namespace gmfast {
inline namespace GMFAST_LEVEL {
namespace {

template <class S>
void run(const QSample& args) {
  using V = Native<S>;
  const auto rows = [&](auto types, auto noise_of) {
    using Types = decltype(types);
    for_each_row<V>(args.shape, [&](RowPlace at) {
      auto w = noise_weights<S>(number_of(args.alpha, at.sample), number_of(args.sigma, at.sample),
                                args.target);
      if (args.backward) w = transposed(w);
      return [=, x = typename Types::In(args.x, at), noise = noise_of(at),
              noised = typename Types::Out(args.noised, at),
              result = typename Types::Out(args.result, at),
              epsilon = args.target == NoiseTarget::epsilon](int64_t i, auto span) {
        const V value = x.load(i, span), z = noise.load(i, span);
        if (noised) noised.store(i, span, weighted(w.first_x, value, w.first_z, z));
        if (result) {
          result.store(i, span, epsilon ? z : weighted(w.second_x, value, w.second_z, z));
        }
      };
    });
  };
  const auto of_types = [&](auto types) {
    using In = typename decltype(types)::In;
    if (args.noise.drawn()) {
      rows(types, [&](RowPlace at) { return DrawnReader<V>(args.noise, args.shape, at); });
    } else if (args.noise.given.data) {
      rows(types, [&](RowPlace at) { return In(args.noise.given, at); });
    } else {  // a gradient that is 0
      rows(RowTypes<V, RowReader<V>, RowWriter<V>>(),
           [&](RowPlace at) { return RowReader<V>(args.noise.given, at); });
    }
  };
  with_rows<V>(of_types, args.x, args.noise.given, args.noised, args.result);
}

}  // namespace
}  // namespace GMFAST_LEVEL

GMFAST_DEFINE_CPU_KERNEL(q_sample, QSample) {
  args.compute == DType::float64 ? run<double>(args) : run<float>(args);
}

}  // namespace gmfast
