#pragma once

#include <cstdint>

#include "rows.h"

namespace gmfast {

// What the noise of a batch is drawn of: of one seed, or each sample of its own seed, of which it
// is sample 0.
struct Seeds {
  const int64_t* data = nullptr;  // on the device of the tensors; null: `value`
  int64_t stride = 0, value = 0;
  bool own = false;
};

// A normal number for each element of a walk: given, or drawn.
struct Noise {
  RowOperand given;  // data null: drawn, or with no seed's data either 0
  Seeds seeds;
  uint32_t draw = 0;
  int64_t channels =
      1;  // innermost in the walk though not in the noise's order; 1: the orders are one

  bool drawn() const { return seeds.data && !given.data; }
};

// A number for each sample of a batch, or one for all.
struct PerSample {
  const void* data = nullptr;  // null: `value`
  DType dtype = DType::float32;
  int64_t stride = 0;
  double value = 0;
};

}  // namespace gmfast
