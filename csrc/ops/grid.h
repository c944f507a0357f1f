// Elements (B, *D) and their parameters (B, *D, K) as grids (common/tensor.h): the dimensions D
// before a split are rows, those behind it columns, K channels. A tensor that cannot be walked so
// is copied.
#pragma once

#include <vector>

#include "layout.h"

namespace gmfast {

class GridWalk {
 public:
  // Elements have `dim` dimensions; [1, split) are the rows, [split, dim) the columns.
  GridWalk(int64_t dim, int64_t split) : dim_(dim), split_(split) {}

  // With the first split at which most of `inputs` are read in place. A parameter counts twice: it
  // is K times as large.
  GridWalk(int64_t dim, std::initializer_list<const Tensor*> inputs) : dim_(dim) {
    int64_t most = -1;
    for (int64_t split = 1; split <= dim; ++split) {
      const GridWalk walk(dim, split);
      int64_t count = 0;
      for (const Tensor* input : inputs) {
        if (walk.can_walk(*input)) count += input->dim() > dim ? 2 : 1;
      }
      if (count > most) split_ = split, most = count;
    }
  }

  bool can_walk(const Tensor& tensor) const {
    Extent rows, columns;
    return extents(tensor, rows, columns);
  }

  // The operand; a copy of the tensor, where there is one, lives as long as the walk.
  Grid operator()(const Tensor& tensor) {
    Extent rows, columns;
    if (!extents(tensor, rows, columns)) {
      copies_.push_back(torch::stable::contiguous(tensor));
      return (*this)(copies_.back());
    }
    Grid grid;
    grid.data = tensor.data_ptr();
    grid.dtype = dtype_of(tensor);
    grid.batch_stride = tensor.stride(0);
    grid.channel_stride = tensor.dim() > dim_ ? tensor.stride(dim_) : 0;
    grid.row_stride = rows.stride;
    grid.column_stride = columns.stride;
    return grid;
  }

  // Where a kernel writes what `result` is to hold: there, or where that cannot be walked, in a
  // contiguous tensor to be copied to it.
  Tensor written_for(const Tensor& result) const {
    return can_walk(result) ? result
                            : empty_contiguous(result, sizes_of(result), result.scalar_type());
  }

  int64_t rows(const Tensor& elements) const { return product(elements, 1, split_); }
  int64_t columns(const Tensor& elements) const { return product(elements, split_, dim_); }

 private:
  bool extents(const Tensor& tensor, Extent& rows, Extent& columns) const {
    const Sizes order = memory_order(dim_, false);
    return collapse(tensor, order, 1, split_, rows) &&
           collapse(tensor, order, split_, dim_, columns);
  }

  static int64_t product(const Tensor& tensor, int64_t first, int64_t last) {
    int64_t result = 1;
    for (int64_t d = first; d < last; ++d) result *= tensor.size(d);
    return result;
  }

  int64_t dim_, split_ = 1;
  std::vector<Tensor> copies_;
};

// A gradient (B,) of sums over samples, which each element of a sample receives.
inline Grid grid_of_samples(const Tensor& tensor) {
  Grid grid;
  grid.data = tensor.data_ptr();
  grid.dtype = dtype_of(tensor);
  grid.batch_stride = tensor.stride(0);
  return grid;
}

}  // namespace gmfast
