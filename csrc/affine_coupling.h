#pragma once

#include "cpu/dispatch.h"
#include "sample_sum.h"
#include "tensor.h"

namespace gmfast {

enum class ScaleMap;

// Each sample of a tensor as (rows, inner), strides counted in elements. Inner are the pixels or,
// for channels_last and where there is one pixel, the channels.
struct CouplingOperand {
  void* data = nullptr;  // null where absent
  DType dtype = DType::float32;
  int64_t batch_stride = 0, row_stride = 0, inner_stride = 0;
};

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

  CouplingOperand x, kept_x;
  CouplingOperand shift, scale;  // scale absent: the map is `none`
  CouplingOperand mask;          // where not 0, x passes; may be absent

  // Forward
  CouplingOperand y, kept_y;
  void* log_det = nullptr;  // (batch) in the compute dtype
  void* scratch = nullptr;  // on a CUDA device, of scratch_bytes()

  // Backward: `x` is y where `from_output`. Absent grad_y and grad_log_det are 0; absent gradients
  // are not wanted.
  bool from_output = false;
  CouplingOperand grad_y, kept_grad_y;
  const void* grad_log_det = nullptr;
  DType grad_log_det_dtype = DType::float32;
  int64_t grad_log_det_stride = 0;
  CouplingOperand grad_x, kept_grad_x, grad_shift, grad_scale;

  // For sums of single elements: enough for those of packs.
  int64_t scratch_bytes() const {
    return SampleSum(batch, rows * inner + kept_rows * kept_inner, coupling_items).scratch_bytes();
  }
};

GMFAST_CPU_KERNEL(affine_coupling, AffineCoupling);
GMFAST_CPU_KERNEL(affine_coupling_backward, AffineCoupling);

void affine_coupling_cuda(const AffineCoupling& args, void* stream);
void affine_coupling_backward_cuda(const AffineCoupling& args, void* stream);

}  // namespace gmfast
