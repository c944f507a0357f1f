#pragma once

#include <algorithm>

#include "../common/kernel.h"
#include "../common/tensor.h"

namespace gmfast {

// A depthwise causal convolution: every channel with taps of its own. Tensors have one dtype; x,
// the states and the y's are (batch, channels, time), all adjacent along time, or all along
// channels where channels_inner.
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

  // So many time steps are computed together. Their inputs reach span() further back, and in the
  // gradient as far forward, which is read or computed once more by each.
  constexpr int64_t steps() const {
    const int64_t enough = channels_inner ? 64 : 2048;
    return std::max(enough, (2 * span() + 63) / 64 * 64);
  }
  // At least one: the gradient of the state is written even where there is no output.
  constexpr int64_t pieces() const {
    return std::max<int64_t>((length + steps() - 1) / steps(), 1);
  }
};

struct CausalConv1dBackward {
  CausalConv1d forward;          // y is the incoming gradient
  Image grad_x;                  // data null where not wanted
  Image grad_state;              // alike
  void* grad_weight = nullptr;   // alike; (channels, taps)
  void* grad_bias = nullptr;     // alike; (channels)
  void* partial_sums = nullptr;  // scratch for those two: rows() by columns(), compute dtype
  constexpr int64_t rows() const { return forward.channels * (forward.taps + 1); }
  constexpr int64_t columns() const { return forward.batch * forward.pieces(); }
};

GMFAST_KERNEL(causal_conv1d, CausalConv1d);
GMFAST_KERNEL(causal_conv1d_backward, CausalConv1dBackward);

}  // namespace gmfast
