// The masked convolution's kernels: see test_masked_conv2d.py.
#include "../../csrc/cuda/masked_conv2d.cu"

#include "driver.h"

using namespace gmfast;

void run_case(Cases& cases) {
  const int64_t kernel = cases.integer(), weight_columns = cases.integer();
  MaskedConv2d conv;
  conv.batch = cases.integer();
  conv.height = cases.integer();
  conv.width = cases.integer();
  conv.left = cases.integer();
  conv.groups = cases.integer();
  conv.in_channels = cases.integer();
  conv.out_channels = cases.integer();
  conv.support.kernel_height = cases.integer();
  conv.support.kernel_width = cases.integer();
  conv.support.row_dilation = cases.integer();
  conv.support.column_dilation = cases.integer();
  conv.support.channel_groups = cases.integer();
  conv.support.sees_itself = cases.integer();
  conv.x = cases.grid();
  conv.weight = cases.grid();
  conv.bias = cases.grid();
  conv.y = cases.grid();
  switch (kernel) {
    case 0:
      return masked_conv2d_cuda(conv, nullptr);
    case 1:
      return masked_conv2d_grad_input_cuda({conv}, nullptr);
    case 2:
      return masked_conv2d_grad_weight_cuda({conv, weight_columns}, nullptr);
  }
}
