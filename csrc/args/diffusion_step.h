// One step of a linear diffusion sampler, with guidance, clipping and noise.
#pragma once

#include "../common/kernel.h"
#include "../common/noise.h"

namespace gmfast {

// Columns of the table of coefficients, a row a step. gmfast._C.diffusion_columns has their names,
// which gmfast.diffusion.COLUMNS repeats.
constexpr int step_x0_x = 0;  // and x0_m: the prediction of x0
constexpr int step_result = 2;
constexpr int step_kept = 10;
constexpr int step_log_var_min = 18;  // and log_var_max
constexpr int step_columns = 20;

// The eight terms of step_result and of step_kept, by what their coefficient multiplies; the
// history has four.
constexpr int term_x = 0, term_m = 1, term_x0 = 2, term_history = 3, term_noise = 7;
constexpr int step_terms = 8;

struct DiffusionStep {
  RowShape shape;
  int64_t elements;  // per sample
  DType compute;

  const double* table;  // rows of step_columns
  int64_t table_rows, table_stride;
  const int64_t* steps;  // row of the table, per sample or (stride 0) for all; null: `step`
  int64_t steps_stride, step;

  bool draws;  // noise is drawn in steps whose coefficient of it is not zero
  Seeds seeds;
  int64_t channels;  // as Noise::channels

  double guidance, rescale;                               // rescale 0: none
  double clip;                                            // infinite: none
  double threshold, threshold_max;                        // negative threshold: none
  RowOperand x, m;                                        // m: the model's output
  RowOperand unconditional, noise, variance, history[4];  // data null: absent
  RowOperand result, x0, kept;                            // x0, kept: data null: not wanted

  // Whether a pass over each whole sample precedes the step.
  bool of_samples() const { return rescale != 0 || threshold >= 0; }
};

GMFAST_KERNEL(diffusion_step, DiffusionStep);

}  // namespace gmfast
