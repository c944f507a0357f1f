#pragma once

#include "../common/kernel.h"
#include "../common/noise.h"

namespace gmfast {

// Columns of a table of coefficients; gmfast/reference/diffusion_step.py names them.
constexpr int step_x0_x = 0;  // and x0_m: what predicts x0
constexpr int step_result = 2;
constexpr int step_kept = 10;
constexpr int step_log_var_min = 18;  // and log_var_max
constexpr int step_columns = 20;

// What the eight columns of a sum multiply.
constexpr int term_x = 0, term_m = 1, term_x0 = 2, term_history = 3, term_noise = 7;
constexpr int step_terms = 8;

struct DiffusionStep {
  RowShape shape;
  int64_t elements;  // of a sample
  DType compute;

  const double* table;  // rows of step_columns
  int64_t table_rows, table_stride;
  const int64_t* steps;  // on the device; null: `step`
  int64_t steps_stride, step;

  bool draws;  // noise, where a row wants some
  Seeds seeds;
  int64_t channels;  // innermost in the walk though not in the noise's order; 1: the orders are one

  double guidance, rescale;               // of no rescaling: 0
  double clip;                            // infinite: none
  double threshold, threshold_max;        // negative threshold: none
  RowOperand x, m, unconditional, noise;  // absent but for x and m: no data
  RowOperand variance, history[4];
  RowOperand result, x0, kept;  // x0 and kept: no data where not wanted

  bool of_samples() const { return rescale != 0 || threshold >= 0; }
};

GMFAST_KERNEL(diffusion_step, DiffusionStep);

}  // namespace gmfast
