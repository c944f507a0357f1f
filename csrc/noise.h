#pragma once

#include <cstdint>

#include "rows.h"

namespace gmfast {

// A normal number for each element of a walk: given, or drawn in the order of the walk.
struct Noise {
  RowOperand given;               // data null: drawn, or with no seed either 0
  const int64_t* seed = nullptr;  // on the device of the tensors
  int64_t seed_stride = 0;        // not 0: each sample is the first of its own seed
  uint32_t draw = 0;

  bool drawn() const { return seed && !given.data; }
};

// A number for each sample of a batch, or one for all.
struct PerSample {
  const void* data = nullptr;  // null: `value`
  DType dtype = DType::float32;
  int64_t stride = 0;
  double value = 0;
};

}  // namespace gmfast
