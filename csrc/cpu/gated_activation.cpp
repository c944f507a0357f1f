#include "../args/gated_activation.h"

#include "../math/gated_activation.h"
#include "tile.h"
#include "vectors.h"

namespace gmfast {

GMFAST_DEFINE_CPU_KERNEL(gated_activation, GatedActivation) {
  with_type(args.x.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    using V = Native<Compute<T>>;
    for_each_piece(args.shape, [&](int64_t sample, int64_t row, int64_t first, int64_t count) {
      const T* a = row_of<T>(args.x, sample, row, 0);
      const T* b = row_of<T>(args.x, sample, row, 1);
      const T* residual = args.residual.data ? row_of<T>(args.residual, sample, row, 0) : nullptr;
      T* __restrict y = row_of<T>(args.y, sample, row, 0);
      for_each_vector<V>(first, count, [&](int64_t i, auto span) {
        V value = gated_activation(span.load(a + i), span.load(b + i));
        if (residual) value += span.load(residual + i);
        span.store(y + i, value);
      });
    });
  });
}

GMFAST_DEFINE_CPU_KERNEL(gated_activation_backward, GatedActivationBackward) {
  with_type(args.x.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    using V = Native<Compute<T>>;
    for_each_piece(args.shape, [&](int64_t sample, int64_t row, int64_t first, int64_t count) {
      const T* a = row_of<T>(args.x, sample, row, 0);
      const T* b = row_of<T>(args.x, sample, row, 1);
      const T* grad_y = row_of<T>(args.grad_y, sample, row, 0);
      T* __restrict grad_a = row_of<T>(args.grad_x, sample, row, 0);
      T* __restrict grad_b = row_of<T>(args.grad_x, sample, row, 1);
      for_each_vector<V>(first, count, [&](int64_t i, auto span) {
        V by_a, by_b;
        gated_activation_backward(span.load(grad_y + i), span.load(a + i), span.load(b + i), by_a,
                                  by_b);
        span.store(grad_a + i, by_a);
        span.store(grad_b + i, by_b);
      });
    });
  });
}

}  // namespace gmfast
