// Sums in an order that depends on nothing but the sizes, accumulated in double.
#pragma once

#include "../common/parallel.h"
#include "../math/simd.h"

namespace gmfast {
inline namespace GMFAST_LEVEL {

template <class S>
double sum(const S* values, int64_t count) {
  using V = Native<double>;
  V partial = splat<V>(0);
  int64_t i = 0;
  for (; i + lanes<V> <= count; i += lanes<V>) partial += load<V>(values + i);
  double total = reduce_add(partial);
  for (; i < count; ++i) total += values[i];
  return total;
}

// totals[b] = scale times the sum of row b of values (rows, columns).
template <class S, class T>
void sum_rows(const S* values, int64_t rows, int64_t columns, double scale, T* totals) {
  parallel_for(rows, 32768 / (columns + 1) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      totals[row] = T(scale * sum(values + row * columns, columns));
  });
}

}  // namespace GMFAST_LEVEL
}  // namespace gmfast
