// Causal convolutions of streams, a few time steps at a time, with the state between calls.
#pragma once

#include "../common/kernel.h"
#include "../common/tensor.h"
#include "../math/simd.h"

namespace gmfast {

// The new inputs of a batch of streams, and the state: each stream's last span() inputs. Both
// kernels below move the state on by `length` steps.
struct CausalConv1dStreams {
  int64_t batch = 0, channels = 0, length = 0;
  int64_t taps = 1, dilation = 1;
  DType dtype = DType::float32;  // of all tensors

  Image x;                       // (batch, channels, length)
  Image state;                   // (rows, channels, span()), oldest first
  int64_t rows = 0;              // of the state
  const void* row_of = nullptr;  // (batch): each stream's row of the state; null: its own index
  bool row_is_int64 = false;     // else int32
  int64_t row_stride = 1;

  constexpr int64_t span() const { return (taps - 1) * dilation; }

  // A stream's row of the state; negative: it has none. Reads row_of's memory.
  GMFAST_HD int64_t row(int64_t stream) const {
    if (!row_of) return stream;
    return row_is_int64 ? static_cast<const int64_t*>(row_of)[stream * row_stride]
                        : static_cast<const int32_t*>(row_of)[stream * row_stride];
  }
};

// The depthwise convolution's outputs at the new time steps; zero for streams without a row.
struct CausalConv1dUpdate {
  CausalConv1dStreams streams;
  bool silu = false;
  const void* weight = nullptr;  // (channels, taps), contiguous
  const void* bias = nullptr;    // (channels); null: none
  Image y;                       // (batch, channels, length)
};

// The inputs at each tap of each new time step: a dense convolution is a matrix product with them.
struct CausalConv1dWindow {
  CausalConv1dStreams streams;
  void* window = nullptr;  // (batch, length, channels, taps), contiguous
};

GMFAST_KERNEL(causal_conv1d_update, CausalConv1dUpdate);
GMFAST_KERNEL(causal_conv1d_window, CausalConv1dWindow);

}  // namespace gmfast
