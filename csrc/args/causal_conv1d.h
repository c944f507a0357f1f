// Depthwise causal convolution over a whole sequence, and its gradients.
#pragma once

#include <algorithm>

#include "../common/indices.h"
#include "../common/kernel.h"
#include "../common/tensor.h"
#include "../common/weights.h"

namespace gmfast {

// x, the state and y have one dtype. They are (batch, channels, time), adjacent along time, or with
// channels_inner along channels.
struct CausalConv1d {
  int64_t batch = 0, channels = 0, length = 0;
  int64_t taps = 1, dilation = 1;
  bool silu = false;
  bool channels_inner = false;
  DType dtype = DType::float32;

  Image x;
  Image initial_state;  // the span() inputs before time 0; data null: zeros
  Weights weight;       // (channels, taps)
  Weights bias;         // (channels)
  Image y;
  Indices seq_idx;  // (batch, length): the sequence of each input; negative: padding
  Indices lengths;  // (batch): padding from there on

  // Several sequences in a row, or padding behind them: an output sees its own sequence's inputs.
  constexpr bool packed() const { return seq_idx.data || lengths.data; }

  // The sequence of an input; negative: padding. The state continues that of time 0. Reads the
  // memory of seq_idx and lengths.
  GMFAST_HD int64_t sequence(int64_t sample, int64_t time) const {
    if (time >= length || (lengths.data && time >= lengths.at(sample))) return -1;
    return seq_idx.data && length ? seq_idx.at(sample, time > 0 ? time : 0) : 0;
  }

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
  Weights grad_weight;           // (channels, taps)
  Weights grad_bias;             // (channels)
  void* partial_sums = nullptr;  // scratch of the latter two: (rows(), columns()), compute dtype
  constexpr int64_t rows() const { return forward.channels * (forward.taps + 1); }
  constexpr int64_t columns() const { return forward.batch * forward.pieces(); }
};

GMFAST_KERNEL(causal_conv1d, CausalConv1d);
GMFAST_KERNEL(causal_conv1d_backward, CausalConv1dBackward);

}  // namespace gmfast
