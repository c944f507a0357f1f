// Sums of rows: see test_sum.py.
#include "../../csrc/cuda/sum.h"

#include "../../csrc/cuda/sample_sum.h"
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

// totals[s] = the sum of row s of values, visited with counts[i] += 1.
__global__ void row_sums(const double* values, double* counts, double* totals, SampleSum sum) {
  const SampleShare share(sum);
  double partial = 0;
  for (int64_t i = share.first; i < share.end; i += share.step) {
    partial += values[share.sample * sum.length + i];
    counts[share.sample * sum.length + i] += 1;
  }
  sum_of_sample(sum, share, partial, [&](double total) { totals[share.sample] += total; });
}

void run_sample_sum(Cases& cases) {
  const int64_t rows = cases.integer(), columns = cases.integer(), items = cases.integer();
  double* values = reinterpret_cast<double*>(cases.memory());
  double* counts = reinterpret_cast<double*>(cases.memory());
  double* totals = reinterpret_cast<double*>(cases.memory());
  SampleSum sum(rows, columns, items);
  std::vector<double> scratch(sum.scratch_bytes() / 8, -1.0);
  sum.scratch = scratch.data();
  launch_sample_sum(row_sums, sum, nullptr, values, counts, totals);
}

}  // namespace
}  // namespace gmfast

void run_case(Cases& cases) {
  if (cases.integer()) return gmfast::run_sample_sum(cases);
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
