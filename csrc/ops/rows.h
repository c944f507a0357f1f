// Tensors as rows (common/rows.h), all in the memory order of one of them; a tensor that cannot be
// walked so is copied.
#pragma once

#include "../common/rows.h"
#include "layout.h"

namespace gmfast {

// (C,)
inline Channels channels_of(const Tensor& tensor) {
  return {tensor.data_ptr(), dtype_of(tensor), tensor.stride(0)};
}

class RowWalk {
 public:
  // `leader` (B, *S) sets shape and order: its channels innermost, or its dimensions as they come.
  explicit RowWalk(const Tensor& leader)
      : sizes_(sizes_of(leader)), channels_last_(channels_innermost(leader)) {
    STD_TORCH_CHECK(leader.dim() >= 2, "expected at least two dimensions");
    order_ = memory_order(leader.dim(), channels_last_);
    // Dimensions [1, split) of the order are the rows. Of one pixel, channels are adjacent
    // elements.
    split_ = 2;
    if (channels_last_) split_ = order_.size() - 1;
    if (pixels_of(leader) == 1) split_ = 1;
    shape_.batch = sizes_[0];
    shape_.rows = product(1, split_);
    shape_.inner = product(split_, order_.size());
  }

  bool channels_inner() const { return channels_last_ || split_ == 1; }

  // Adds a tensor that broadcasts to the leader's shape. Returns what the operand points into, to
  // be kept until the kernel has run.
  Tensor add(const Tensor& tensor, RowOperand& operand) {
    operand.dtype = dtype_of(tensor);
    return place(tensor, operand);
  }

  // As add(), of any dtype: the operand's is left alone.
  Tensor place(Tensor tensor, RowOperand& operand) {
    Sizes strides = strides_of(tensor);
    if (!walk(strides, operand)) {
      strides = dense_strides(sizes_, channels_last_);
      Tensor copy = empty_strided(tensor, sizes_, strides, tensor.scalar_type());
      torch::stable::copy_(copy, tensor);
      tensor = copy;
      walk(strides, operand);
    }
    operand.data = tensor.data_ptr();
    const int64_t row = shape_.inner * operand.inner_stride;
    const int64_t sample = shape_.rows > 1 ? shape_.rows * operand.row_stride : row;
    rows_adjoin_ = rows_adjoin_ && (shape_.rows <= 1 || operand.row_stride == row);
    samples_adjoin_ = samples_adjoin_ && (shape_.batch <= 1 || operand.batch_stride == sample);
    return tensor;
  }

  // With samples as they are, and rows as they are.
  RowShape shape() const { return shape_; }

  // Whether in all that was added the rows of a sample follow each other in memory, and the samples
  // as well.
  bool rows_adjoin() const { return rows_adjoin_; }
  bool all_adjoin() const { return rows_adjoin_ && samples_adjoin_; }

  // With the rows of a sample as one, where they adjoin.
  RowShape merged_shape() const {
    return rows_adjoin_ ? RowShape{shape_.batch, 1, shape_.rows * shape_.inner} : shape_;
  }

 private:
  int64_t product(size_t first, size_t last) const {
    int64_t result = 1;
    for (size_t i = first; i < last; ++i) result *= sizes_[order_[i]];
    return result;
  }

  // For the leader's dimensions, 0 where the tensor is broadcast.
  Sizes strides_of(const Tensor& tensor) const {
    const int64_t missing = int64_t(sizes_.size()) - tensor.dim();
    STD_TORCH_CHECK(missing >= 0, "expected a tensor that broadcasts");
    Sizes strides(sizes_.size(), 0);
    for (int64_t d = 0; d < tensor.dim(); ++d) {
      const int64_t size = tensor.size(d);
      STD_TORCH_CHECK(size == sizes_[d + missing] || size == 1,
                      "expected a tensor that broadcasts");
      if (size > 1) strides[d + missing] = tensor.stride(d);
    }
    return strides;
  }

  // Dimensions order[first], ..., order[last - 1] as one; false where they have no common stride.
  bool collapse(const Sizes& strides, size_t first, size_t last, int64_t* stride) const {
    int64_t expected = -1;
    *stride = 0;
    for (size_t i = last; i-- > first;) {
      const int64_t size = sizes_[order_[i]];
      if (size <= 1) continue;
      if (expected < 0) {
        *stride = strides[order_[i]];
      } else if (strides[order_[i]] != expected) {
        return false;
      }
      expected = strides[order_[i]] * size;
    }
    return true;
  }

  bool walk(const Sizes& strides, RowOperand& operand) const {
    operand.batch_stride = sizes_[0] > 1 ? strides[0] : 0;
    const bool common = collapse(strides, 1, split_, &operand.row_stride) &&
                        collapse(strides, split_, order_.size(), &operand.inner_stride);
    if (shape_.batch * shape_.rows * shape_.inner == 0) {
      operand.batch_stride = operand.row_stride = operand.inner_stride = 0;
      return true;
    }
    if (shape_.inner == 1) {
      operand.inner_stride = (shape_.rows > 1 ? operand.row_stride : operand.batch_stride) != 0;
    }
    return common && (operand.inner_stride == 0 || operand.inner_stride == 1);
  }

  Sizes sizes_, order_;
  bool channels_last_;
  size_t split_ = 1;
  bool rows_adjoin_ = true, samples_adjoin_ = true;
  RowShape shape_;
};

}  // namespace gmfast
