// Sums of rows in an order that depends on nothing but the sizes, accumulated in double.
#pragma once

#include "launch.h"

namespace gmfast {

constexpr int sum_threads = 256;
// What a block sums of a long row; a short row is one block's.
constexpr int64_t sum_segment = 8192;

// Block b sums every step-th element of segment b % segments of row b / segments. The sum replaces
// the segment's first element, or scale times it becomes totals[b].
template <class S>
__global__ void __launch_bounds__(sum_threads)
    sum_kernel(S* values, int64_t columns, int64_t segments, int64_t length, int64_t step,
               double scale, S* totals) {
  const int64_t first = block_index() % segments * length;
  const int64_t end = first + length < columns ? first + length : columns;
  S* row = values + block_index() / segments * columns;
  double partial = 0;
  GMFAST_UNROLL_BY(4)
  for (int64_t i = first + thread_index() * step; i < end; i += sum_threads * step) {
    partial += row[i];
  }
  const double total = block_sum<sum_threads>(partial);
  if (thread_index() == 0) *(totals ? totals + block_index() : row + first) = S(scale * total);
}

// totals[r] = scale times the sum of row r of values (rows, columns), whose rows beyond 8192
// columns it uses as scratch. A partial sum is rounded to S once, so a total of terms of one sign
// errs by one ulp at most.
template <class S>
void sum_rows(S* values, int64_t rows, int64_t columns, double scale, S* totals, void* stream) {
  const int64_t segments = ceil_div(columns, sum_segment);
  const bool in_parts = segments > 1;
  if (in_parts) {
    launch(sum_kernel<S>, rows * segments, sum_threads, 0, stream, values, columns, segments,
           sum_segment, 1, 1.0, nullptr);
  }
  launch(sum_kernel<S>, rows, sum_threads, 0, stream, values, columns, 1, columns,
         in_parts ? sum_segment : 1, scale, totals);
}

}  // namespace gmfast
