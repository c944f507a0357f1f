#pragma once

#include "../common/kernel.h"
#include "../common/tensor.h"
#include "../math/masked_conv2d.h"

namespace gmfast {

// y = convolution of x with the live taps of the weight, + bias. A dense or grouped causal
// convolution of k taps is one of a kernel of 1 by 2k - 1 whose weight has only the first k
// columns, the live ones: no other is ever read.
struct MaskedConv2d {
  int64_t batch = 0, height = 0, width = 0;
  int64_t left = 0;    // so many columns of x lie before its column 0 and are not zeros
  int64_t groups = 1;  // convolutions side by side; channels below are of one of them
  int64_t in_channels = 0, out_channels = 0;
  ConvSupport support;
  Grid x;       // (batch, groups * in_channels, height, width)
  Grid weight;  // (groups * out_channels, in_channels, kernel_height, kernel_width)
  Grid bias;    // (groups * out_channels) along channel_stride; data null where absent
  Grid y;       // (batch, groups * out_channels, height, width)
  const void* packed = nullptr;  // on the CPU, what masked_conv2d_pack made of the weight
};

// The weight in the order and the vector width that a CPU kernel reads it, in the compute type.
struct MaskedConv2dPack {
  MaskedConv2d forward;
  bool for_grad_input = false;
  void* packed = nullptr;  // packed_weight_size() numbers
};

// At most, at any vector width.
inline int64_t packed_weight_size(const MaskedConv2d& conv, int64_t taps, bool for_grad_input) {
  const int64_t in = for_grad_input ? conv.out_channels : conv.in_channels;
  const int64_t out = for_grad_input ? conv.in_channels : conv.out_channels;
  return conv.groups * in * taps * ((out + 31) / 32 * 32);
}

// The gradient by x of the same; where `left`, by the columns before column 0 too.
struct MaskedConv2dGradInput {
  MaskedConv2d forward;  // y is the incoming gradient, x is written; no bias
};

// The gradients by weight, zero at masked entries, and by bias (data null where not wanted).
struct MaskedConv2dGradWeight {
  MaskedConv2d forward;    // y is the incoming gradient; weight and bias are written
  int64_t weight_columns;  // that the weight has: kernel_width, or fewer
};

GMFAST_CPU_KERNEL(masked_conv2d_pack, MaskedConv2dPack);
GMFAST_KERNEL(masked_conv2d, MaskedConv2d);
GMFAST_KERNEL(masked_conv2d_grad_input, MaskedConv2dGradInput);
GMFAST_KERNEL(masked_conv2d_grad_weight, MaskedConv2dGradWeight);

}  // namespace gmfast
