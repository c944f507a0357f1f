// Masked convolutions of PixelCNNs, and dense and grouped causal convolutions in one dimension.
#pragma once

#include "../common/kernel.h"
#include "../common/tensor.h"
#include "../math/masked_conv2d.h"

namespace gmfast {

// y = convolution of x with the weight's live taps (csrc/math/masked_conv2d.h), + bias. A causal
// convolution of k taps has a kernel of 1 by 2k - 1, of whose weight only the first k columns, the
// live ones, exist: no other is read.
struct MaskedConv2d {
  int64_t batch = 0, height = 0, width = 0;
  int64_t left = 0;    // columns of x in memory before column 0, read in place of zero padding
  int64_t groups = 1;  // of the convolution; channels below are one group's
  int64_t in_channels = 0, out_channels = 0;
  ConvSupport support;
  Grid x;       // (batch, groups * in_channels, height, width)
  Grid weight;  // (groups * out_channels, in_channels, kernel_height, kernel_width)
  Grid bias;    // (groups * out_channels) along channel_stride; data null: absent
  Grid y;       // (batch, groups * out_channels, height, width)
  const void* packed = nullptr;  // on the CPU: the weight packed by masked_conv2d_pack
};

// Packs the weight in the order and vector width of the CPU kernels, in the compute type.
struct MaskedConv2dPack {
  MaskedConv2d forward;
  bool for_grad_input = false;
  void* packed = nullptr;  // packed_weight_size() elements
};

// Upper bound over all vector widths.
inline int64_t packed_weight_size(const MaskedConv2d& conv, int64_t taps, bool for_grad_input) {
  const int64_t in = for_grad_input ? conv.out_channels : conv.in_channels;
  const int64_t out = for_grad_input ? conv.in_channels : conv.out_channels;
  return conv.groups * in * taps * ((out + 31) / 32 * 32);
}

// The gradient with respect to x, including the `left` columns.
struct MaskedConv2dGradInput {
  MaskedConv2d forward;  // y is the output's gradient, x is written; no bias
};

// The gradients with respect to weight, zero at masked entries, and bias (data null: not wanted).
struct MaskedConv2dGradWeight {
  MaskedConv2d forward;    // y is the output's gradient; weight and bias are written
  int64_t weight_columns;  // existing columns of the weight: kernel_width or fewer
};

GMFAST_CPU_KERNEL(masked_conv2d_pack, MaskedConv2dPack);
GMFAST_KERNEL(masked_conv2d, MaskedConv2d);
GMFAST_KERNEL(masked_conv2d_grad_input, MaskedConv2dGradInput);
GMFAST_KERNEL(masked_conv2d_grad_weight, MaskedConv2dGradWeight);

}  // namespace gmfast
