// The noise and the coefficients of csrc/common/noise.h, from the cases of a test.
#pragma once

#include "../../csrc/common/noise.h"
#include "rows.h"

inline gmfast::Seeds seeds(Cases& cases, int64_t value = 0) {
  gmfast::Seeds seeds;
  seeds.value = value;
  seeds.data = reinterpret_cast<const int64_t*>(cases.memory());
  seeds.stride = cases.integer();
  seeds.own = seeds.stride != 0;
  seeds.first = cases.integer();
  return seeds;
}

inline gmfast::Noise noise_of(Cases& cases) {
  gmfast::Noise noise;
  noise.given = row_operand(cases);
  noise.seeds = seeds(cases);
  noise.draw = uint32_t(cases.integer());
  noise.channels = cases.integer();
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
