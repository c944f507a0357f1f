// From a DType to a type, on the host to pick a kernel, on the device to read a tensor.
#pragma once

#include "../common/tensor.h"
#include "../math/simd.h"

namespace gmfast {

// Calls body with a null pointer of the type that `dtype` names. S is the type computed in: double
// inputs never meet float arithmetic, so that case is left out.
template <class S, class Body>
GMFAST_HD void with_type(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::float32:
      return body(static_cast<float*>(nullptr));
    case DType::bfloat16:
      return body(static_cast<BFloat16*>(nullptr));
    case DType::float16:
      return body(static_cast<Half*>(nullptr));
    case DType::float64:
      if constexpr (std::is_same<S, double>::value) return body(static_cast<double*>(nullptr));
  }
}

}  // namespace gmfast
