// Log-density of a diagonal Gaussian, summed over each sample.
#pragma once

#include "../common/kernel.h"
#include "../common/rows.h"
#include "../common/sample_sum.h"

namespace gmfast {

struct GaussianLogProb {
  RowShape shape;
  int64_t elements;  // per sample
  DType compute;
  RowOperand z;
  RowOperand mean, log_std;  // data null: zero
  void* log_prob;            // (batch) in the compute dtype
  SampleSum sum;             // on a GPU
};

struct GaussianLogProbBackward {
  RowShape shape;
  bool channels_inner;  // channels are the inner elements of a row; else the rows
  DType compute;
  const void* grad;  // (batch) in the compute dtype
  int64_t grad_stride;
  RowOperand z;
  RowOperand mean, log_std;  // data null: zero
  // Data null: not wanted. Gradients of mean and log_std are elementwise, or, for one value per
  // channel, sums.
  RowOperand grad_z, grad_mean, grad_log_std;
  Channels channel_mean, channel_log_std;
  ChannelSum sum;  // on a GPU
};

GMFAST_KERNEL(gaussian_log_prob, GaussianLogProb);
GMFAST_KERNEL(gaussian_log_prob_backward, GaussianLogProbBackward);

}  // namespace gmfast
