// The inverse of a masked autoencoder's affine transform, one dimension after another, and the
// triangular solve of its gradient. CPU only.
#pragma once

#include <cstdint>

#include "../common/kernel.h"
#include "../common/tensor.h"

namespace gmfast {

// Matrices are dense, row-major, their rows and columns in the order of the steps; all of one
// dtype.
struct MadeLayers {
  DType dtype = DType::float32;  // float32 or float64
  int64_t batch = 0, steps = 0, inputs = 1, outputs = 1, layers = 0;
  int64_t units[16] = {};
  const void* weights[17] = {};
  const void* direct = nullptr;  // from the input to the output; null: absent
};

// x = (z - shift) * exp(-log_scale), both computed from the values before.
struct MadeInverse {
  MadeLayers net;
  const void* z = nullptr;            // (batch, steps)
  const void* offsets = nullptr;      // biases: (batch or 1, all units, then all outputs)
  int64_t offsets_stride = 0;         // 0: shared by the batch
  int activation = 0, scale_map = 1;  // MadeActivation, ScaleMap
  double clamp = 2;
  void* x = nullptr;        // (batch, steps)
  void* log_det = nullptr;  // (batch,)
};

// Solves J^T v = grad for v, J the Jacobian of the forward pass. `net` is transposed, its steps
// reversed.
struct MadeSolve {
  MadeLayers net;
  const void* grad = nullptr;      // (batch, steps)
  const void* diagonal = nullptr;  // (batch, steps): diagonal of J
  const void* partial = nullptr;   // (batch, steps, inputs): derivative by each parameter
  const void* slopes = nullptr;    // (batch, all units): derivative of the activation
  void* v = nullptr;               // (batch, steps)
};

GMFAST_CPU_KERNEL(made_inverse, MadeInverse);
GMFAST_CPU_KERNEL(made_solve, MadeSolve);

}  // namespace gmfast
