// The hybrid loss of improved DDPM: squared error of epsilon, and the variational bound of v.
#pragma once

#include "../common/kernel.h"
#include "../common/rows.h"
#include "../common/sample_sum.h"

namespace gmfast {

struct DiffusionHybridLossInputs {
  RowShape shape;
  int64_t elements;  // per sample
  DType compute;
  int64_t num_classes;
  bool exact;             // exact discretized likelihood; else improved DDPM's approximation
  RowOperand epsilon, v;  // the halves of the model's output
  RowOperand x0, x_t, noise;
  const double* table;  // (steps, columns)
  int64_t row_stride, column_stride, steps;
  const int64_t* timestep;  // (batch)
  int64_t timestep_stride;
};

struct DiffusionHybridLoss {
  DiffusionHybridLossInputs in;
  void* simple;  // (batch) in the compute dtype
  void* bound;
  SampleSum sum;  // on a GPU
};

struct DiffusionHybridLossBackward {
  DiffusionHybridLossInputs in;
  const void* grad_simple;  // (batch) in the compute dtype; null: zero
  const void* grad_bound;
  int64_t grad_simple_stride, grad_bound_stride;
  RowOperand grad_epsilon, grad_v;
};

GMFAST_KERNEL(diffusion_hybrid_loss, DiffusionHybridLoss);
GMFAST_KERNEL(diffusion_hybrid_loss_backward, DiffusionHybridLossBackward);

}  // namespace gmfast
