// Sums of rows: see test_sum.py.
#include "../../csrc/cuda/sum.h"

#include "driver.h"

namespace gmfast {
namespace {

// totals[0] and [1]: the sum of 64 values and of their squares.
__global__ void two_sums(const double* values, double* totals) {
  const double value = values[thread_index()];
  const double sum = block_sum<64>(value), squares = block_sum<64>(value * value);
  if (thread_index() == 0) totals[0] = sum;
  if (thread_index() == 63) totals[1] = squares;
}

}  // namespace
}  // namespace gmfast

void run_case(Cases& cases) {
  const int64_t rows = cases.integer(), columns = cases.integer(), single = cases.integer();
  char* values = cases.memory();
  char* totals = cases.memory();
  if (rows == 0) {
    gmfast::launch(gmfast::two_sums, 1, 64, 0, nullptr, reinterpret_cast<double*>(values),
                   reinterpret_cast<double*>(totals));
  } else if (single) {
    gmfast::sum_rows(reinterpret_cast<float*>(values), rows, columns, 0.25,
                     reinterpret_cast<float*>(totals), nullptr);
  } else {
    gmfast::sum_rows(reinterpret_cast<double*>(values), rows, columns, 0.25,
                     reinterpret_cast<double*>(totals), nullptr);
  }
}
