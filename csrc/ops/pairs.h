// Tensors as pairs (PairOperand), all in the memory order of one of them; a tensor that cannot be
// walked so is copied.
#pragma once

#include "../common/rows.h"
#include "layout.h"

namespace gmfast {

class PairWalk {
 public:
  // `leader` sets the order: its channels innermost, or its dimensions as they come.
  PairWalk(const Tensor& leader, int64_t dim)
      : channels_last_(channels_innermost(leader)),
        order_(memory_order(leader.dim(), channels_last_)) {
    STD_TORCH_CHECK(dim >= 0 && dim < leader.dim(), "dim: out of range");
    while (order_[position_] != dim) ++position_;
  }

  // Adds an operand that holds both halves along the dimension, or one. Returns what it points
  // into, to be kept until the kernel has run.
  Tensor add(Tensor tensor, int halves, PairOperand& operand) {
    Extent before, behind;
    if (!walk(tensor, before, behind)) {
      const Sizes sizes = sizes_of(tensor);
      Tensor copy =
          empty_strided(tensor, sizes, dense_strides(sizes, channels_last_), tensor.scalar_type());
      torch::stable::copy_(copy, tensor);
      tensor = copy;
      walk(tensor, before, behind);
    }
    const int64_t dim = order_[position_], rows = tensor.size(dim) / halves;
    operand.data = tensor.data_ptr();
    operand.dtype = dtype_of(tensor);
    operand.batch_stride = before.stride;
    operand.row_stride = tensor.stride(dim);
    operand.half_stride = (halves - 1) * rows * operand.row_stride;
    shape_ = {before.size, rows, behind.size};
    rows_adjoin_ = rows_adjoin_ && operand.row_stride == behind.size;
    return tensor;
  }

  // Of all that was added; rows that follow each other in memory are one.
  RowShape shape() const {
    return rows_adjoin_ ? RowShape{shape_.batch, 1, shape_.rows * shape_.inner} : shape_;
  }

 private:
  // The dimensions before and behind the halved one, if each is one and the latter's elements
  // adjoin.
  bool walk(const Tensor& tensor, Extent& before, Extent& behind) const {
    return collapse(tensor, order_, 0, position_, before) &&
           collapse(tensor, order_, position_ + 1, order_.size(), behind) &&
           (behind.size == 1 ? tensor.stride(order_[position_]) == 1 : behind.stride == 1);
  }

  bool channels_last_;
  Sizes order_;
  size_t position_ = 0;
  bool rows_adjoin_ = true;
  RowShape shape_{};
};

}  // namespace gmfast
