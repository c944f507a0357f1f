#pragma once

#include <cstdint>

#include "tensor.h"

namespace gmfast {

// Tensors (batch, channels, pixels) walked as (batch, rows, inner): the rows are the channels, or,
// with the channels innermost in memory, the pixels.
struct RowShape {
  int64_t batch = 0, rows = 0, inner = 0;
};

// A tensor of that shape, broadcast where a stride is 0. Strides count elements.
struct RowOperand {
  void* data = nullptr;
  DType dtype = DType::float32;
  int64_t batch_stride = 0, row_stride = 0;
  int64_t inner_stride = 0;  // 0 or 1
};

// A number for each channel.
struct Channels {
  void* data = nullptr;
  DType dtype = DType::float32;
  int64_t stride = 0;
};

// How a CUDA kernel divides sums over batch and pixels for each channel, in an order that sizes
// alone decide. A block takes `lanes` neighbouring channels and a segment of the positions, which
// are the pixels counted through the batch.
struct ChannelSum {
  int64_t channels = 0, positions = 0;
  int64_t lanes = 1, segment = 1, segments = 0;
  double* scratch = nullptr;  // two sums of each segment and channel

  ChannelSum() = default;
  ChannelSum(const RowShape& shape, bool channels_inner)
      : channels(channels_inner ? shape.inner : shape.rows),
        positions(shape.batch * (channels_inner ? shape.rows : shape.inner)),
        lanes(channels_inner ? 32 : 1),
        segment(8192 / lanes * (channels_inner ? 4 : 1)),
        segments((positions + segment - 1) / segment) {}

  int64_t scratch_bytes() const { return segments * channels * 2 * 8; }
};

}  // namespace gmfast
