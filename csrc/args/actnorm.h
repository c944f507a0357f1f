// ActNorm: y = (x + shift) * exp(log_scale) per channel, its inverse and the gradients.
#pragma once

#include "../common/kernel.h"
#include "../common/rows.h"

namespace gmfast {

struct ActNorm {
  RowShape shape;
  bool channels_inner;  // channels are the inner elements of a row; else the rows
  bool adjoin;          // all elements are adjacent in memory, in the order of the walk
  int64_t batch, channels, pixels;
  bool inverse;
  DType compute;

  RowOperand x, y;
  Channels shift, log_scale;
  void* log_det;  // (batch) in the compute dtype
};

struct ActNormBackward {
  RowShape shape;
  bool channels_inner, adjoin;
  int64_t batch, channels, pixels;
  bool inverse;
  DType compute;

  RowOperand grad_y;  // data null: zero
  RowOperand x;
  Channels shift, log_scale;
  const void* grad_log_det;  // (batch) in the compute dtype; null: zero
  int64_t grad_log_det_stride;
  RowOperand grad_x;                    // data null: not wanted
  Channels grad_shift, grad_log_scale;  // likewise, both or none
  ChannelSum sum;                       // on a GPU
};

GMFAST_KERNEL(actnorm, ActNorm);
GMFAST_KERNEL(actnorm_backward, ActNormBackward);

}  // namespace gmfast
