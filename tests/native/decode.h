// Decode programs in the cases of a test: what `recorded` of tests/decode/stepping.py writes.
#pragma once

#include "../../csrc/args/decode.h"
#include "../cuda_on_cpu/driver.h"

// A C array that a case holds.
template <class T>
struct Structs {
  int64_t count;
  T* data;
};

template <class T>
Structs<T> structs(Cases& cases) {
  const int64_t count = cases.integer();
  return {count, reinterpret_cast<T*>(cases.memory())};
}

// Fills `program` but for the taps, which it returns: DecodeTap on the CPU, DecodeStrip on a GPU.
inline Structs<char> read_program(Cases& cases, gmfast::DecodeProgram& program,
                                  Structs<gmfast::DecodeValue>& values,
                                  Structs<gmfast::DecodeLayer>& layers) {
  program.dtype = gmfast::DType(cases.integer());
  program.weight_dtype = gmfast::DType(cases.integer());
  program.columns = cases.integer();
  program.features.value = cases.integer();
  program.features.channel = cases.integer();
  program.num_features = cases.integer();
  program.log_scale_min = cases.real();
  values = structs<gmfast::DecodeValue>(cases);
  const auto taps = structs<char>(cases);
  layers = structs<gmfast::DecodeLayer>(cases);
  program.draws = structs<gmfast::DecodeDraw>(cases).data;
  const auto steps = structs<gmfast::DecodeStep>(cases);
  program.values = values.data;
  program.layers = layers.data;
  program.steps = steps.data;
  program.num_steps = steps.count;
  return taps;
}
