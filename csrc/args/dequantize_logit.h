// Dequantization and logit of a flow's data, with the log-determinant; csrc/math/dequantize_logit.h
// has the formula.
#pragma once

#include "../common/kernel.h"
#include "../common/noise.h"
#include "../common/sample_sum.h"

namespace gmfast {

enum class LevelType { floating, uint8, int16, int32, int64 };

// Inputs of forward and backward.
struct DequantizeLogitInputs {
  RowShape shape;
  DType compute;
  double alpha, num_levels;
  bool inverse, quantize;
  LevelType x_type;  // floating: x.dtype
  RowOperand x;
  RowOperand noise;  // data null: drawn, in the order of the walk
  Seeds seeds;       // data null: noise is not drawn
};

struct DequantizeLogit {
  DequantizeLogitInputs in;
  int64_t elements;  // per sample
  RowOperand y;
  void* log_det;  // (batch) in the compute dtype
  SampleSum sum;  // on a GPU
};

struct DequantizeLogitBackward {
  DequantizeLogitInputs in;
  RowOperand grad_y;         // data null: zero
  const void* grad_log_det;  // (batch) in the compute dtype; null: zero
  int64_t grad_log_det_stride;
  RowOperand grad_x, grad_noise;  // data null: not wanted
};

GMFAST_KERNEL(dequantize_logit, DequantizeLogit);
GMFAST_KERNEL(dequantize_logit_backward, DequantizeLogitBackward);

}  // namespace gmfast
