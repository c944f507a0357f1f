// Affine couplings of normalizing flows, with the log-determinant; csrc/math/affine_coupling.h has
// the formula.
#pragma once

#include "../common/kernel.h"
#include "../common/rows.h"
#include "../common/sample_sum.h"

namespace gmfast {

enum class ScaleMap;

// Items (elements or packs) of a long sample per CUDA thread.
constexpr int coupling_items = 4;

// The last channels are transformed, the first ("kept") copied. x and y have one dtype; they and
// the parameters are computed in `compute`.
struct AffineCoupling {
  int64_t batch;
  int64_t rows, inner;            // of the transformed channels
  int64_t kept_rows, kept_inner;  // of the copied channels
  ScaleMap map;
  bool shift_first, inverse;
  double clamp;
  DType compute;

  RowOperand x, kept_x;
  RowOperand shift, scale;  // scale without data: the map is `none`
  RowOperand mask;          // non-zero elements of x pass unchanged; data null: no mask

  // Forward
  RowOperand y, kept_y;
  void* log_det = nullptr;  // (batch) in the compute dtype
  void* scratch = nullptr;  // scratch_bytes() on the GPU

  // Backward. With `from_output`, x holds y. An input gradient without data is zero, a result
  // without data not wanted.
  bool from_output = false;
  RowOperand grad_y, kept_grad_y;
  const void* grad_log_det = nullptr;
  DType grad_log_det_dtype = DType::float32;
  int64_t grad_log_det_stride = 0;
  RowOperand grad_x, kept_grad_x, grad_shift, grad_scale;

  // Sized for items of one element: packs need less.
  int64_t scratch_bytes() const {
    return SampleSum(batch, rows * inner + kept_rows * kept_inner, coupling_items).scratch_bytes();
  }
};

GMFAST_KERNEL(affine_coupling, AffineCoupling);
GMFAST_KERNEL(affine_coupling_backward, AffineCoupling);

}  // namespace gmfast
