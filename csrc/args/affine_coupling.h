#pragma once

#include "../common/kernel.h"
#include "../common/rows.h"
#include "../common/sample_sum.h"

namespace gmfast {

enum class ScaleMap;

// What a CUDA thread does for a long sample.
constexpr int coupling_items = 4;

// x and y have one dtype; what they and the parameters are computed in is `compute`.
struct AffineCoupling {
  int64_t batch;
  int64_t rows, inner;            // of what is transformed
  int64_t kept_rows, kept_inner;  // of what is copied
  ScaleMap map;
  bool shift_first, inverse;
  double clamp;
  DType compute;

  RowOperand x, kept_x;
  RowOperand shift, scale;  // scale absent: the map is `none`
  RowOperand mask;          // where not 0, x passes; may be absent

  // Forward
  RowOperand y, kept_y;
  void* log_det = nullptr;  // (batch) in the compute dtype
  void* scratch = nullptr;  // on a CUDA device, of scratch_bytes()

  // Backward: `x` is y where `from_output`. Absent grad_y and grad_log_det are 0; absent gradients
  // are not wanted.
  bool from_output = false;
  RowOperand grad_y, kept_grad_y;
  const void* grad_log_det = nullptr;
  DType grad_log_det_dtype = DType::float32;
  int64_t grad_log_det_stride = 0;
  RowOperand grad_x, kept_grad_x, grad_shift, grad_scale;

  // For sums of single elements: enough for those of packs.
  int64_t scratch_bytes() const {
    return SampleSum(batch, rows * inner + kept_rows * kept_inner, coupling_items).scratch_bytes();
  }
};

GMFAST_KERNEL(affine_coupling, AffineCoupling);
GMFAST_KERNEL(affine_coupling_backward, AffineCoupling);

}  // namespace gmfast
