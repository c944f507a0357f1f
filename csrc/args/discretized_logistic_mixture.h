// The discretized logistic mixture of PixelCNN++: negative log-likelihood with its gradients, and
// samples.
#pragma once

#include "../common/kernel.h"
#include "../common/noise.h"

namespace gmfast {

struct LogisticMixtureNll {
  int64_t batch, pixels;
  int channels;  // 1, or 3: coupled
  int64_t mixtures;
  int num_classes;
  double log_scale_min;
  bool pixelcnnpp;  // the published approximation; else the exact bin

  Image x, params;
  void* loss;             // (batch, pixels) in the compute dtype
  void* total;            // total_scale times its sums, in the compute dtype; null: not wanted
  bool total_over_batch;  // total is (), else (batch)
  double total_scale;
  // Gradients of gradient_scale times the sum of the whole loss; data null: not wanted.
  Image grad_x, grad_params;
  double gradient_scale = 1;

  DType compute() const { return compute_dtype(x.dtype, params.dtype); }
};

struct LogisticMixtureSample {
  int64_t batch, pixels;
  int channels;
  int64_t mixtures;
  int num_classes;
  double log_scale_min;
  double temperature;
  bool quantize;

  Image params;
  Seeds seeds;  // on the device of params
  void* x;      // (batch, channels, pixels), contiguous, in the compute dtype

  DType compute() const { return compute_dtype(params.dtype); }
};

GMFAST_KERNEL(discretized_logistic_mixture_nll, LogisticMixtureNll);
GMFAST_KERNEL(discretized_logistic_mixture_sample, LogisticMixtureSample);

}  // namespace gmfast
