#include "../args/concat_elu.h"

#include "../math/concat_elu.h"
#include "tile.h"
#include "vectors.h"

namespace gmfast {

GMFAST_DEFINE_CPU_KERNEL(concat_elu, ConcatElu) {
  with_type(args.x.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    using V = Native<Compute<T>>;
    for_each_piece(args.shape, [&](int64_t sample, int64_t row, int64_t first, int64_t count) {
      const T* x = row_of<T>(args.x, sample, row, 0);
      T* positive = row_of<T>(args.y, sample, row, 0);
      T* negative = row_of<T>(args.y, sample, row, 1);
      for_each_vector<V>(first, count, [&](int64_t i, auto span) {
        V of_x, of_minus_x;
        concat_elu(span.load(x + i), of_x, of_minus_x);
        span.store(positive + i, of_x);
        span.store(negative + i, of_minus_x);
      });
    });
  });
}

GMFAST_DEFINE_CPU_KERNEL(concat_elu_backward, ConcatEluBackward) {
  with_type(args.x.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    using V = Native<Compute<T>>;
    for_each_piece(args.shape, [&](int64_t sample, int64_t row, int64_t first, int64_t count) {
      const T* x = row_of<T>(args.x, sample, row, 0);
      const T* positive = row_of<T>(args.grad_y, sample, row, 0);
      const T* negative = row_of<T>(args.grad_y, sample, row, 1);
      T* grad_x = row_of<T>(args.grad_x, sample, row, 0);
      for_each_vector<V>(first, count, [&](int64_t i, auto span) {
        span.store(grad_x + i, concat_elu_backward(span.load(positive + i), span.load(negative + i),
                                                   span.load(x + i)));
      });
    });
  });
}

}  // namespace gmfast
