#pragma once

#include "../common/kernel.h"
#include "../common/rows.h"

namespace gmfast {

struct ActNorm {
  RowShape shape;  // rows, or with channels_inner their elements, are channels
  bool channels_inner;
  bool adjoin;  // all elements follow each other in memory
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

  RowOperand grad_y;  // data null where it is 0
  RowOperand x;
  Channels shift, log_scale;
  const void* grad_log_det;  // (batch) in the compute dtype; null where it is 0
  int64_t grad_log_det_stride;
  RowOperand grad_x;                    // data null where not wanted
  Channels grad_shift, grad_log_scale;  // likewise, both or none
  ChannelSum sum;                       // CUDA's
};

GMFAST_KERNEL(actnorm, ActNorm);
GMFAST_KERNEL(actnorm_backward, ActNormBackward);

}  // namespace gmfast
