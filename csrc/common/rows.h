// Rows: how elementwise operations walk their tensors, and sums over samples or channels.
#pragma once

#include "tensor.h"

namespace gmfast {

// Tensors (batch, channels, pixels) are walked as (batch, rows, inner): the rows are the channels,
// or, with the channels innermost in memory, the pixels.
struct RowShape {
  int64_t batch = 0, rows = 0, inner = 0;
};

// A tensor of that shape, broadcast where a stride is 0.
struct RowOperand {
  void* data = nullptr;
  DType dtype = DType::float32;
  int64_t batch_stride = 0, row_stride = 0;
  int64_t inner_stride = 0;  // 0 or 1; an affine coupling takes any
};

// A tensor whose two halves along one dimension an operation takes as one operand each, or a tensor
// of one half's size. Here `batch` is every dimension before the halved one, `rows` that one, and
// the inner elements are adjacent.
struct PairOperand {
  void* data = nullptr;
  DType dtype = DType::float32;
  int64_t batch_stride = 0, row_stride = 0;
  int64_t half_stride = 0;  // from an element to that of the second half; 0: one half
};

// One value per channel.
struct Channels {
  void* data = nullptr;
  DType dtype = DType::float32;
  int64_t stride = 0;
};

// Division of a CUDA kernel's work for sums over batch and pixels for each channel; the order of
// the additions depends on sizes alone. A block takes `lanes` adjacent channels and a segment of
// the positions: the pixels, numbered through the batch.
struct ChannelSum {
  int64_t channels = 0, positions = 0;
  int64_t lanes = 1, segment = 1, segments = 0;
  double* scratch = nullptr;  // two sums per segment and channel

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
