// Weights and biases, and what they are to be for half-precision networks with float32 parameters.
#pragma once

#include "../math/simd.h"

namespace gmfast {

// Contiguous numbers, of the dtype of the tensors beside them or of the dtype computed in.
struct Parameter {
  void* data = nullptr;  // null: absent, or a gradient that is not wanted
  bool wide = false;     // of the dtype computed in
};

inline namespace GMFAST_LEVEL {

// Number `index`, beside tensors of T.
template <class T>
GMFAST_HD Compute<T> load_parameter(const Parameter& parameter, int64_t index) {
  using S = Compute<T>;
  return parameter.wide ? static_cast<const S*>(parameter.data)[index]
                        : load<S>(static_cast<const T*>(parameter.data) + index);
}

template <class T>
GMFAST_HD void store_parameter(const Parameter& parameter, int64_t index, Compute<T> value) {
  if (parameter.wide) {
    static_cast<Compute<T>*>(parameter.data)[index] = value;
  } else {
    store(static_cast<T*>(parameter.data) + index, value);
  }
}

}  // namespace GMFAST_LEVEL
}  // namespace gmfast
