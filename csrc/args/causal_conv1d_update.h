// Causal convolutions of streams, a few time steps at a time, with the state between calls.
#pragma once

#include "../common/indices.h"
#include "../common/kernel.h"
#include "../common/tensor.h"
#include "../common/weights.h"

namespace gmfast {

// The new inputs of a batch of streams, and the state: each stream's last `entries` inputs, of
// which the taps reach the last span(). Both kernels below move the state on by `length` steps.
struct CausalConv1dStreams {
  int64_t batch = 0, channels = 0, length = 0;
  int64_t taps = 1, dilation = 1;
  DType dtype = DType::float32;  // of x, the state and y

  Image x;              // (batch, channels, length)
  Image state;          // (rows, channels, entries), oldest first
  int64_t rows = 0;     // of the state
  int64_t entries = 0;  // span() or more
  Indices row_of;       // (batch): each stream's row of the state; absent: its own index
  Indices seen;  // (batch): the state is circular, input number i at entry i mod entries, and
                 // this is the number of the first new input; absent: the state shifts

  constexpr int64_t span() const { return (taps - 1) * dilation; }

  // A stream's row of the state; negative: it has none. Reads row_of's memory.
  GMFAST_HD int64_t row(int64_t stream) const { return row_of.data ? row_of.at(stream) : stream; }

  // The entry of the state's oldest input. Reads the memory of `seen`.
  GMFAST_HD int64_t oldest(int64_t stream) const {
    if (!seen.data || entries == 0) return 0;
    const int64_t entry = seen.at(stream) % entries;
    return entry < 0 ? entry + entries : entry;
  }
};

// Entry `oldest` + `age` of a circular state, age < entries.
GMFAST_HD int64_t circular_entry(int64_t oldest, int64_t age, int64_t entries) {
  const int64_t at = oldest + age;
  return at < entries ? at : at - entries;
}

// The depthwise convolution's outputs at the new time steps; zero for streams without a row.
struct CausalConv1dUpdate {
  CausalConv1dStreams streams;
  bool silu = false;
  Weights weight;  // (channels, taps)
  Weights bias;    // (channels)
  Image y;         // (batch, channels, length)
};

// The inputs at each tap of each new time step: a dense convolution is a matrix product with them.
struct CausalConv1dWindow {
  CausalConv1dStreams streams;
  void* window = nullptr;  // (batch, length, channels, taps), contiguous
};

GMFAST_KERNEL(causal_conv1d_update, CausalConv1dUpdate);
GMFAST_KERNEL(causal_conv1d_window, CausalConv1dWindow);

}  // namespace gmfast
