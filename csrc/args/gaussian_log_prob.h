#pragma once

#include "../common/kernel.h"
#include "../common/rows.h"
#include "../common/sample_sum.h"

namespace gmfast {

struct GaussianLogProb {
  RowShape shape;
  int64_t elements;  // of a sample
  DType compute;
  RowOperand z;
  RowOperand mean, log_std;  // data null: 0
  void* log_prob;            // (batch) in the compute dtype
  SampleSum sum;             // CUDA's
};

struct GaussianLogProbBackward {
  RowShape shape;
  bool channels_inner;  // channels are the rows, or with this their elements
  DType compute;
  const void* grad;  // (batch) in the compute dtype
  int64_t grad_stride;
  RowOperand z;
  RowOperand mean, log_std;  // data null: 0
  // Data null where not wanted. The latter two are either whole or sums of channels.
  RowOperand grad_z, grad_mean, grad_log_std;
  Channels channel_mean, channel_log_std;
  ChannelSum sum;  // CUDA's
};

GMFAST_KERNEL(gaussian_log_prob, GaussianLogProb);
GMFAST_KERNEL(gaussian_log_prob_backward, GaussianLogProbBackward);

}  // namespace gmfast
