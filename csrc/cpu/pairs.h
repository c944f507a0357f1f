// The halves of a tensor along one dimension (common/rows.h).
#pragma once

#include "tile.h"
#include "vectors.h"

namespace gmfast {
inline namespace GMFAST_LEVEL {

// One half of an operand along one row.
template <class T>
inline T* row_of(const PairOperand& operand, int64_t sample, int64_t row, int half) {
  return static_cast<T*>(operand.data) + sample * operand.batch_stride + row * operand.row_stride +
         half * operand.half_stride;
}

}  // namespace GMFAST_LEVEL
}  // namespace gmfast
