#pragma once

#include "../common/kernel.h"
#include "../common/rows.h"
#include "../common/sample_sum.h"

namespace gmfast {

struct DiffusionHybridLossInputs {
  RowShape shape;
  int64_t elements;  // of a sample
  DType compute;
  int64_t num_classes;
  bool exact;             // or as improved DDPM has it
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
  SampleSum sum;  // CUDA's
};

struct DiffusionHybridLossBackward {
  DiffusionHybridLossInputs in;
  const void* grad_simple;  // (batch) in the compute dtype; null where it is 0
  const void* grad_bound;
  int64_t grad_simple_stride, grad_bound_stride;
  RowOperand grad_epsilon, grad_v;
};

GMFAST_KERNEL(diffusion_hybrid_loss, DiffusionHybridLoss);
GMFAST_KERNEL(diffusion_hybrid_loss_backward, DiffusionHybridLossBackward);

}  // namespace gmfast
