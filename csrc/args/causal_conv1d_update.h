#pragma once

#include "../common/kernel.h"
#include "../common/tensor.h"
#include "../math/simd.h"

namespace gmfast {

// The last inputs of a causal convolution, for each of a batch of streams, and the next few. Both
// forms of a step replace the state by the last inputs; they differ in what they make of them.
struct CausalConv1dStreams {
  int64_t batch = 0, channels = 0, length = 0;
  int64_t taps = 1, dilation = 1;
  DType dtype = DType::float32;  // of all tensors

  Image x;                       // (batch, channels, length)
  Image state;                   // (rows, channels, span()), oldest first
  int64_t rows = 0;              // of the state
  const void* row_of = nullptr;  // (batch): whose; null: the same number's
  bool row_is_int64 = false;     // or int32
  int64_t row_stride = 1;

  constexpr int64_t span() const { return (taps - 1) * dilation; }

  // Negative where a stream has none. For whoever can read row_of, host or device.
  GMFAST_HD int64_t row(int64_t stream) const {
    if (!row_of) return stream;
    return row_is_int64 ? static_cast<const int64_t*>(row_of)[stream * row_stride]
                        : static_cast<const int32_t*>(row_of)[stream * row_stride];
  }
};

// The depthwise convolution's outputs; 0 for a stream whose row is negative.
struct CausalConv1dUpdate {
  CausalConv1dStreams streams;
  bool silu = false;
  const void* weight = nullptr;  // (channels, taps), contiguous
  const void* bias = nullptr;    // (channels); null: none
  Image y;                       // (batch, channels, length)
};

// What a dense convolution multiplies: the inputs that each tap sees.
struct CausalConv1dWindow {
  CausalConv1dStreams streams;
  void* window = nullptr;  // (batch, length, channels, taps), contiguous
};

GMFAST_KERNEL(causal_conv1d_update, CausalConv1dUpdate);
GMFAST_KERNEL(causal_conv1d_window, CausalConv1dWindow);

}  // namespace gmfast
