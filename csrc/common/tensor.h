// Tensors as kernels see them: an operand is a pointer, a dtype and the strides by which it is
// walked. Sizes, which an operation's operands share, are beside them in its arguments.
// Strides count elements. data is null where an optional tensor is absent.
//
//   Image        (batch, channels, pixels)
//   Grid         (batch, channels, rows, columns)
//   RowOperand   (batch, rows, inner), inner mostly adjacent: common/rows.h
//   PairOperand  the two halves of a tensor along one dimension: common/rows.h
#pragma once

#include <cstdint>

namespace gmfast {

enum class DType { float32, float64, bfloat16, float16 };

constexpr int64_t element_size(DType dtype) {
  return dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2;
}

// The dtype that values of two dtypes are computed in.
inline DType compute_dtype(DType a, DType b = DType::float32) {
  return a == DType::float64 || b == DType::float64 ? DType::float64 : DType::float32;
}

struct Image {
  void* data = nullptr;
  DType dtype = DType::float32;
  int64_t batch_stride = 0, channel_stride = 0, pixel_stride = 0;
};

// Also the elements of a batch and their parameters: element dimensions as two, so that views of a
// convolution's output are read in place, and an element's mixture components or bins as channels.
struct Grid {
  void* data = nullptr;
  DType dtype = DType::float32;
  int64_t batch_stride = 0, channel_stride = 0, row_stride = 0, column_stride = 0;
};

}  // namespace gmfast
