// concat_elu: elu(x) and elu(-x), concatenated along a dimension.
#pragma once

#include "../common/kernel.h"
#include "../common/rows.h"

namespace gmfast {

struct ConcatElu {
  RowShape shape;
  PairOperand x, y;
};

struct ConcatEluBackward {
  RowShape shape;
  PairOperand grad_y, x, grad_x;
};

GMFAST_KERNEL(concat_elu, ConcatElu);
GMFAST_KERNEL(concat_elu_backward, ConcatEluBackward);

}  // namespace gmfast
