#pragma once

#include "../common/kernel.h"
#include "../common/rows.h"
#include "../common/sample_sum.h"

namespace gmfast {

enum class LevelType { floating, uint8, int16, int32, int64 };

// What forward and backward have in common.
struct DequantizeLogitInputs {
  RowShape shape;
  DType compute;
  double alpha, num_levels;
  bool inverse, quantize;
  LevelType x_type;  // floating: as x.dtype says
  RowOperand x;
  RowOperand noise;     // data null: drawn. Drawn for elements in the order of the walk
  const int64_t* seed;  // where drawn, on the device of x
};

struct DequantizeLogit {
  DequantizeLogitInputs in;
  int64_t elements;  // of a sample
  RowOperand y;
  void* log_det;  // (batch) in the compute dtype
  SampleSum sum;  // CUDA's
};

struct DequantizeLogitBackward {
  DequantizeLogitInputs in;
  RowOperand grad_y;         // data null where it is 0
  const void* grad_log_det;  // (batch) in the compute dtype; null where it is 0
  int64_t grad_log_det_stride;
  RowOperand grad_x, grad_noise;  // data null where not wanted
};

GMFAST_KERNEL(dequantize_logit, DequantizeLogit);
GMFAST_KERNEL(dequantize_logit_backward, DequantizeLogitBackward);

}  // namespace gmfast
