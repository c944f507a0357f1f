// Weights and biases: those of float32 stay so beside half-precision tensors.
#pragma once

#include "../math/simd.h"

namespace gmfast {

// Contiguous numbers, of the dtype of the tensors beside them or of the dtype computed in.
struct Weights {
  void* data = nullptr;  // null: absent, or a gradient that is not wanted
  bool wide = false;     // of the dtype computed in
};

inline namespace GMFAST_LEVEL {

// Number `index`, beside tensors of T.
template <class T>
GMFAST_HD Compute<T> load_weight(const Weights& weights, int64_t index) {
  using S = Compute<T>;
  if constexpr (std::is_same<T, S>::value) return static_cast<const S*>(weights.data)[index];
  return weights.wide ? static_cast<const S*>(weights.data)[index]
                      : load<S>(static_cast<const T*>(weights.data) + index);
}

template <class T>
GMFAST_HD void store_weight(const Weights& weights, int64_t index, Compute<T> value) {
  if (weights.wide) {
    static_cast<Compute<T>*>(weights.data)[index] = value;
  } else {
    store(static_cast<T*>(weights.data) + index, value);
  }
}

}  // namespace GMFAST_LEVEL
}  // namespace gmfast
