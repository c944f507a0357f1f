// The noise and the coefficients of csrc/noise.h, from the cases of a test.
#pragma once

#include "../../csrc/noise.h"
#include "rows.h"

inline gmfast::Noise noise_of(Cases& cases) {
  gmfast::Noise noise;
  noise.given = row_operand(cases);
  noise.seed = reinterpret_cast<const int64_t*>(cases.memory());
  noise.seed_stride = cases.integer();
  noise.draw = uint32_t(cases.integer());
  return noise;
}

inline gmfast::PerSample per_sample(Cases& cases) {
  gmfast::PerSample numbers;
  numbers.value = cases.real();
  numbers.data = cases.memory();
  numbers.dtype = gmfast::DType(cases.integer());
  numbers.stride = 1;
  return numbers;
}
