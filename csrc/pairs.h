#pragma once

#include <cstdint>

#include "tensor.h"

namespace gmfast {

// Operations between a tensor and its two halves along one dimension walk both as
// (outer, rows, inner), inner contiguous; element (o, r, i) of the second half lies half_stride
// after that of the first.
struct PairShape {
  int64_t outer, rows, inner;
};

struct PairOperand {
  void* data = nullptr;
  DType dtype = DType::float32;
  int64_t outer_stride = 0, row_stride = 0;
  int64_t half_stride = 0;  // 0 for a tensor of one half's size
};

}  // namespace gmfast
