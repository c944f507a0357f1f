// The kernels on pairs, one after the other: see test_pairs.py.
#include "../../csrc/cuda/concat_elu.cu"
#include "../../csrc/cuda/gated_activation.cu"
#include "driver.h"

using namespace gmfast;

void run_case(Cases& cases) {
  const int64_t kernel = cases.integer();
  RowShape shape;
  shape.batch = cases.integer();
  shape.rows = cases.integer();
  shape.inner = cases.integer();
  const PairOperand a = cases.operand(), b = cases.operand(), c = cases.operand();
  switch (kernel) {
    case 0:
      return gated_activation_cuda({shape, a, b, c}, nullptr);
    case 1:
      return gated_activation_backward_cuda({shape, a, b, c}, nullptr);
    case 2:
      return concat_elu_cuda({shape, a, c}, nullptr);
    case 3:
      return concat_elu_backward_cuda({shape, a, b, c}, nullptr);
  }
}
