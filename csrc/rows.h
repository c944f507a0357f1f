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

}  // namespace gmfast
