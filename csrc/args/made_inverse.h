#pragma once

#include <cstdint>

#include "../common/kernel.h"
#include "../common/tensor.h"

namespace gmfast {

// Matrices are dense, row after row, in the order of the steps; all numbers have one dtype.
struct MadeLayers {
  DType dtype = DType::float32;  // float32 or float64
  int64_t batch = 0, steps = 0, inputs = 1, outputs = 1, layers = 0;
  int64_t units[16] = {};
  const void* weights[17] = {};
  const void* direct = nullptr;  // null where absent
};

// The affine inverse x = (z - shift)·exp(-log_scale), both of the values before.
struct MadeInverse {
  MadeLayers net;
  const void* z = nullptr;            // (batch, steps)
  const void* offsets = nullptr;      // (batch or 1, all units and then all outputs), added to sums
  int64_t offsets_stride = 0;         // 0: all samples have the same
  int activation = 0, scale_map = 1;  // MadeActivation, ScaleMap
  double clamp = 2;
  void* x = nullptr;        // (batch, steps)
  void* log_det = nullptr;  // (batch,)
};

// v of Jᵀv = grad, J the derivative of the forward pass. The network is transposed and turned
// around.
struct MadeSolve {
  MadeLayers net;
  const void* grad = nullptr;      // (batch, steps)
  const void* diagonal = nullptr;  // (batch, steps): of J
  const void* partial = nullptr;   // (batch, steps, inputs): of a value by each of its parameters
  const void* slopes = nullptr;    // (batch, all units): of the activation
  void* v = nullptr;               // (batch, steps)
};

GMFAST_CPU_KERNEL(made_inverse, MadeInverse);
GMFAST_CPU_KERNEL(made_solve, MadeSolve);

}  // namespace gmfast
