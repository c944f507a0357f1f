// Depthwise causal convolution over a whole sequence, and its gradients.
#pragma once

#include <algorithm>

#include "../common/kernel.h"
#include "../common/tensor.h"

namespace gmfast {

// All tensors have one dtype. x, the state and y are (batch, channels, time), adjacent along time,
// or with channels_inner along channels.
struct CausalConv1d {
  int64_t batch = 0, channels = 0, length = 0;
  int64_t taps = 1, dilation = 1;
  bool silu = false;
  bool channels_inner = false;
  DType dtype = DType::float32;

  Image x;
  Image initial_state;           // the span() inputs before time 0; data null: zeros
  const void* weight = nullptr;  // (channels, taps), contiguous
  const void* bias = nullptr;    // (channels); null: none
  Image y;

  constexpr int64_t span() const { return (taps - 1) * dilation; }

  // Time steps of a piece, computed as one unit of work. Its halo of span() steps before it, and in
  // the gradient after it, is read or computed again by each piece.
  constexpr int64_t steps() const {
    const int64_t enough = channels_inner ? 64 : 2048;
    return std::max(enough, (2 * span() + 63) / 64 * 64);
  }
  // At least one: the state's gradient is written even for sequences of length 0.
  constexpr int64_t pieces() const {
    return std::max<int64_t>((length + steps() - 1) / steps(), 1);
  }
};

struct CausalConv1dBackward {
  CausalConv1d forward;  // y is the output's gradient
  Image grad_x;          // data null: not wanted; so the others
  Image grad_state;
  void* grad_weight = nullptr;   // (channels, taps)
  void* grad_bias = nullptr;     // (channels)
  void* partial_sums = nullptr;  // scratch of the latter two: (rows(), columns()), compute dtype
  constexpr int64_t rows() const { return forward.channels * (forward.taps + 1); }
  constexpr int64_t columns() const { return forward.batch * forward.pieces(); }
};

GMFAST_KERNEL(causal_conv1d, CausalConv1d);
GMFAST_KERNEL(causal_conv1d_backward, CausalConv1dBackward);

}  // namespace gmfast
