// Tensors of int32 or int64: rows, positions, lengths.
#pragma once

#include "../math/simd.h"

namespace gmfast {

// (batch) or (batch, count), of any strides.
struct Indices {
  const void* data = nullptr;  // null: absent
  bool is_int64 = false;       // else int32
  int64_t batch_stride = 0, stride = 0;

  // Reads the tensor's memory, which may be the GPU's.
  GMFAST_HD int64_t at(int64_t sample, int64_t index = 0) const {
    const int64_t offset = sample * batch_stride + index * stride;
    return is_int64 ? static_cast<const int64_t*>(data)[offset]
                    : static_cast<const int32_t*>(data)[offset];
  }
};

}  // namespace gmfast
