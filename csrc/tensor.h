// What passes between the torch operators and the kernels: pointers, dtypes and strides, no torch.
#pragma once

#include <cstdint>

namespace gmfast {

enum class DType { float32, float64, bfloat16, float16 };

// The dtype that values of two dtypes are computed in.
inline DType compute_dtype(DType a, DType b = DType::float32) {
  return a == DType::float64 || b == DType::float64 ? DType::float64 : DType::float32;
}

// A tensor (batch, channels, pixels) of any strides, counted in elements. data is null where an
// operator's optional tensor is absent.
struct Image {
  void* data = nullptr;
  DType dtype = DType::float32;
  int64_t batch_stride = 0;
  int64_t channel_stride = 0;
  int64_t pixel_stride = 0;
};

}  // namespace gmfast
