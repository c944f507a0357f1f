#pragma once

#include "cpu/dispatch.h"
#include "pairs.h"

namespace gmfast {

struct ConcatElu {
  PairShape shape;
  PairOperand x, y;
};

struct ConcatEluBackward {
  PairShape shape;
  PairOperand grad_y, x, grad_x;
};

GMFAST_CPU_KERNEL(concat_elu, ConcatElu);
GMFAST_CPU_KERNEL(concat_elu_backward, ConcatEluBackward);

void concat_elu_cuda(const ConcatElu& args, void* stream);
void concat_elu_backward_cuda(const ConcatEluBackward& args, void* stream);

}  // namespace gmfast
