// Torch tensors as the kernels see them. Checks here guard memory; the public functions in
// gmfast/ops check arguments first and with better words.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <vector>

#include "../common/indices.h"
#include "../common/tensor.h"
#include "../common/weights.h"
#include "error.h"

namespace gmfast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Sizes = std::vector<int64_t>;

inline DType dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return DType::float32;
    case ScalarType::Double:
      return DType::float64;
    case ScalarType::BFloat16:
      return DType::bfloat16;
    case ScalarType::Half:
      return DType::float16;
    default:
      STD_TORCH_CHECK(false, "expected float32, float64, bfloat16 or float16");
  }
}

inline ScalarType scalar_type(DType dtype) {
  return dtype == DType::float64 ? ScalarType::Double : ScalarType::Float;
}

inline Sizes sizes_of(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return Sizes(sizes.begin(), sizes.end());
}

// Dimensions walked as one.
struct Extent {
  int64_t size = 1, stride = 1;
};

// Dimensions order[first], ..., order[last - 1] as one; false where they have no common stride. Of
// no elements, every stride is right.
inline bool collapse(const Tensor& tensor, const Sizes& order, size_t first, size_t last,
                     Extent& extent) {
  int64_t expected = -1;
  bool common = true;
  extent = {};
  for (size_t i = last; i-- > first;) {
    const int64_t size = tensor.size(order[i]), stride = tensor.stride(order[i]);
    extent.size *= size;
    if (size <= 1) continue;
    if (expected < 0) {
      extent.stride = stride;
    } else {
      common = common && stride == expected;
    }
    expected = stride * size;
  }
  if (extent.size == 0) extent.stride = 1;
  return common || tensor.numel() == 0;
}

// 0, 1, ..., with dimension 1 moved to the end for channels_last.
inline Sizes memory_order(int64_t dim, bool channels_last) {
  Sizes order;
  order.reserve(dim);
  for (int64_t d = 0; d < dim; ++d) {
    if (!channels_last || d != 1) order.push_back(d);
  }
  if (channels_last) order.push_back(1);
  return order;
}

// The spatial dimensions of (B, C, *S) as one.
inline bool spatial(const Tensor& tensor, Extent& extent) {
  return collapse(tensor, memory_order(tensor.dim(), false), 2, tensor.dim(), extent);
}

// The tensor itself, or a contiguous copy, whose spatial dimensions walk with one stride.
inline Tensor with_one_pixel_stride(const Tensor& tensor) {
  Extent pixels;
  return spatial(tensor, pixels) ? tensor : torch::stable::contiguous(tensor);
}

// (B, C, *S), S walking with one stride.
inline Image image_of(const Tensor& tensor) {
  Extent pixels;
  STD_TORCH_CHECK(spatial(tensor, pixels), "expected spatial dimensions with one stride");
  Image image;
  image.data = tensor.data_ptr();
  image.dtype = dtype_of(tensor);
  image.batch_stride = tensor.stride(0);
  image.channel_stride = tensor.stride(1);
  image.pixel_stride = pixels.stride;
  return image;
}

inline int64_t pixels_of(const Tensor& tensor) {
  int64_t pixels = 1;
  for (int64_t d = 2; d < tensor.dim(); ++d) pixels *= tensor.size(d);
  return pixels;
}

// Channels innermost: (B, C, *S) as channels_last has it, whether dense or a slice of such a
// tensor.
inline bool channels_innermost(const Tensor& tensor) {
  return tensor.dim() > 2 && tensor.stride(1) == 1 && !tensor.is_contiguous();
}

// Uninitialised, on the device of `tensor`.
inline Tensor empty_strided(const Tensor& tensor, const Sizes& sizes, const Sizes& strides,
                            ScalarType dtype) {
  int32_t device_type, device_index;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor.get(), &device_type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(tensor.get(), &device_index));
  const int32_t type = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(int64_t(sizes.size()), sizes.data(),
                                                         strides.data(), type, device_type,
                                                         device_index, &handle));
  return Tensor(handle);
}

inline Sizes dense_strides(const Sizes& sizes, bool channels_last) {
  Sizes strides(sizes.size());
  const Sizes order = memory_order(int64_t(sizes.size()), channels_last);
  int64_t stride = 1;
  for (size_t i = order.size(); i-- > 0;) {
    strides[order[i]] = stride;
    stride *= sizes[order[i]] > 0 ? sizes[order[i]] : 1;
  }
  return strides;
}

inline Tensor empty_contiguous(const Tensor& tensor, const Sizes& sizes, ScalarType dtype) {
  return empty_strided(tensor, sizes, dense_strides(sizes, false), dtype);
}

// Dense: channels_last where `tensor` has its channels innermost, else contiguous.
// gmfast/ops/_layout.py states the same for fake tensors.
inline Tensor empty_as(const Tensor& tensor, const Sizes& sizes, ScalarType dtype) {
  const bool channels_last = sizes.size() > 2 && channels_innermost(tensor);
  return empty_strided(tensor, sizes, dense_strides(sizes, channels_last), dtype);
}

inline Tensor empty_as(const Tensor& tensor, const Sizes& sizes) {
  return empty_as(tensor, sizes, tensor.scalar_type());
}

// Dense, its dimensions in memory in the order of the tensor's, so that the gradient of a view of a
// convolution's output lies as that output does: contiguous for an expanded one.
// gmfast/ops/_layout.py states the same for fake tensors.
inline Tensor empty_in_order(const Tensor& tensor) {
  const Sizes sizes = sizes_of(tensor);
  Sizes strides = dense_strides(sizes, false), order = memory_order(tensor.dim(), false);
  bool expanded = false;
  for (int64_t d : order) expanded = expanded || (sizes[d] > 1 && tensor.stride(d) == 0);
  if (!expanded) {
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return tensor.stride(a) > tensor.stride(b); });
    int64_t stride = 1;
    for (size_t i = order.size(); i-- > 0;) {
      strides[order[i]] = stride;
      stride *= sizes[order[i]] > 0 ? sizes[order[i]] : 1;
    }
  }
  return empty_strided(tensor, sizes, strides, tensor.scalar_type());
}

// Device memory for a kernel besides its operands; empty for 0 bytes.
inline Tensor scratch_for(const Tensor& tensor, int64_t bytes) {
  return empty_contiguous(tensor, {(bytes + 7) / 8}, ScalarType::Double);
}

inline bool same_device(const Tensor& a, const Tensor& b) {
  return a.is_cuda() == b.is_cuda() && a.get_device_index() == b.get_device_index();
}

// Raises unless `tensor` has these sizes, and the dtype and device of another.
inline void check_like(const char* name, const Tensor& tensor, const Tensor& like,
                       const Sizes& sizes) {
  STD_TORCH_CHECK(sizes_of(tensor) == sizes && tensor.scalar_type() == like.scalar_type() &&
                      same_device(tensor, like),
                  name, ": expected another shape, dtype or device");
}

// Raises unless `tensor` has these sizes and the device of another, and a dtype that a kernel
// computing in `compute` reads: kernels for float32 know no float64.
inline void check_operand(const char* name, const Tensor& tensor, const Tensor& like,
                          const Sizes& sizes, DType compute) {
  STD_TORCH_CHECK(sizes_of(tensor) == sizes &&
                      compute_dtype(compute, dtype_of(tensor)) == compute &&
                      same_device(tensor, like),
                  name, ": expected another shape, dtype or device");
}

// A contiguous weight or bias beside tensors like another.
inline Weights weights_of(const char* name, const Tensor& tensor, const Tensor& like,
                          const Sizes& sizes) {
  const ScalarType wide = scalar_type(compute_dtype(dtype_of(like)));
  STD_TORCH_CHECK(sizes_of(tensor) == sizes && same_device(tensor, like) &&
                      (tensor.scalar_type() == like.scalar_type() || tensor.scalar_type() == wide),
                  name, ": expected another shape, dtype or device");
  return {tensor.data_ptr(), tensor.scalar_type() == wide};
}

inline Indices indices_of(const char* name, const Tensor& tensor, const Tensor& like,
                          const Sizes& sizes) {
  const ScalarType type = tensor.scalar_type();
  STD_TORCH_CHECK(sizes_of(tensor) == sizes && same_device(tensor, like) &&
                      (type == ScalarType::Long || type == ScalarType::Int),
                  name, ": expected another shape or device, or neither int32 nor int64");
  return {tensor.data_ptr(), type == ScalarType::Long, tensor.stride(0),
          sizes.size() > 1 ? tensor.stride(1) : 0};
}

}  // namespace gmfast
