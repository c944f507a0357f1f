#include "../args/masked_conv2d.h"

#include <algorithm>
#include <optional>
#include <tuple>

#include "../math/masked_conv2d.h"
#include "backend.h"
#include "layout.h"

namespace gmfast {
namespace {

Grid grid_of(const Tensor& tensor) {
  return {tensor.data_ptr(), dtype_of(tensor), tensor.stride(0),
          tensor.stride(1),  tensor.stride(2), tensor.stride(3)};
}

Grid grid_of_row(const Tensor& tensor) {
  Grid grid;
  grid.data = tensor.data_ptr();
  grid.dtype = dtype_of(tensor);
  grid.channel_stride = tensor.stride(0);
  return grid;
}

// What every operator below is told besides its tensors: the full kernel's width, of which the
// weight may have the first columns only, and the rest of the convolution's arguments.
struct Geometry {
  int64_t kernel_width;
  bool sees_itself;
  int64_t channel_groups, row_dilation, column_dilation, groups, left;

  // For x (B, groups * I, H, left + W) and weight (groups * O, I, h, columns).
  MaskedConv2d arguments(const Sizes& x, const Sizes& weight) const {
    STD_TORCH_CHECK(x.size() == 4 && weight.size() == 4, "x, weight: expected four dimensions");
    STD_TORCH_CHECK(groups > 0 && x[1] == groups * weight[1] && weight[0] % groups == 0,
                    "x, weight: their channels do not agree");
    STD_TORCH_CHECK(weight[2] % 2 == 1 && kernel_width % 2 == 1 &&
                        weight[3] >= (weight[2] > 1 ? kernel_width : kernel_width / 2 + 1) &&
                        weight[3] <= kernel_width,
                    "weight: expected an odd kernel with all columns that are live");
    STD_TORCH_CHECK(row_dilation > 0 && column_dilation > 0 && left >= 0 && left <= x[3],
                    "dilation, left: out of range");
    MaskedConv2d args;
    args.batch = x[0];
    args.height = x[2];
    args.width = x[3] - left;
    args.left = left;
    args.groups = groups;
    args.in_channels = weight[1];
    args.out_channels = weight[0] / groups;
    STD_TORCH_CHECK(channel_groups > 0 && args.in_channels % channel_groups == 0 &&
                        args.out_channels % channel_groups == 0,
                    "channel_groups: expected a divisor of the channels");
    args.support.kernel_height = weight[2];
    args.support.kernel_width = kernel_width;
    // A tap further away than the image is long is outside, however far.
    args.support.row_dilation = std::min(row_dilation, std::max<int64_t>(x[2], 1));
    args.support.column_dilation = std::min(column_dilation, std::max<int64_t>(x[3], 1));
    args.support.channel_groups = channel_groups;
    args.support.sees_itself = sees_itself;
    return args;
  }
};

#define GMFAST_GEOMETRY                                                                 \
  int64_t kernel_width, bool sees_itself, int64_t channel_groups, int64_t row_dilation, \
      int64_t column_dilation, int64_t groups, int64_t left
#define GMFAST_GEOMETRY_SCHEMA                                                 \
  "int kernel_width, bool sees_itself, int channel_groups, int row_dilation, " \
  "int column_dilation, int groups, int left"
#define GMFAST_GEOMETRY_OF                                                                 \
  Geometry {                                                                               \
    kernel_width, sees_itself, channel_groups, row_dilation, column_dilation, groups, left \
  }

// x's first column that is not of the state before it.
Grid from_column(const Tensor& x, int64_t column) {
  Grid grid = grid_of(x);
  const int64_t bytes = element_size(grid.dtype);
  grid.data = static_cast<char*>(grid.data) + column * grid.column_stride * bytes;
  return grid;
}

Tensor pack(const MaskedConv2d& args, const Tensor& weight, bool for_grad_input) {
  const int64_t taps = live_taps(args.support);
  Tensor packed = empty_contiguous(weight, {packed_weight_size(args, taps, for_grad_input)},
                                   scalar_type(compute_dtype(dtype_of(weight))));
  MaskedConv2dPack pack_args{args, for_grad_input, packed.data_ptr()};
  pack_args.forward.weight = grid_of(weight);
  masked_conv2d_pack_cpu(pack_args);
  return packed;
}

Tensor forward(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
               GMFAST_GEOMETRY) {
  MaskedConv2d args = GMFAST_GEOMETRY_OF.arguments(sizes_of(x), sizes_of(weight));
  check_like("weight", weight, x, sizes_of(weight));
  if (bias) check_like("bias", *bias, x, {weight.size(0)});
  Tensor y = empty_as(x, {args.batch, weight.size(0), args.height, args.width});
  Tensor weights;
  if (!x.is_cuda()) {
    weights = pack(args, weight, false);
    args.packed = weights.data_ptr();
  }
  args.x = from_column(x, left);
  args.weight = grid_of(weight);
  if (bias) args.bias = grid_of_row(*bias);
  args.y = grid_of(y);
  GMFAST_RUN(masked_conv2d, x, args);
  return y;
}

Tensor grad_input(const Tensor& grad, const Tensor& weight, GMFAST_GEOMETRY) {
  STD_TORCH_CHECK(grad.dim() == 4 && weight.dim() == 4, "grad, weight: expected four dimensions");
  const Sizes sizes = {grad.size(0), groups * weight.size(1), grad.size(2), left + grad.size(3)};
  MaskedConv2dGradInput args{GMFAST_GEOMETRY_OF.arguments(sizes, sizes_of(weight))};
  check_like("weight", weight, grad, sizes_of(weight));
  check_like("grad", grad, grad, {sizes[0], weight.size(0), sizes[2], grad.size(3)});
  Tensor grad_x = empty_as(grad, sizes);
  Tensor weights;
  if (!grad.is_cuda()) {
    weights = pack(args.forward, weight, true);
    args.forward.packed = weights.data_ptr();
  }
  args.forward.x = from_column(grad_x, left);
  args.forward.weight = grid_of(weight);
  args.forward.y = grid_of(grad);
  GMFAST_RUN(masked_conv2d_grad_input, grad, args);
  return grad_x;
}

// The gradient by the bias is empty where it is not wanted.
std::tuple<Tensor, Tensor> grad_weight(const Tensor& grad, const Tensor& x, int64_t kernel_height,
                                       int64_t weight_columns, bool want_bias, GMFAST_GEOMETRY) {
  STD_TORCH_CHECK(grad.dim() == 4 && x.dim() == 4 && groups > 0,
                  "grad, x: expected four dimensions");
  const Sizes sizes = {grad.size(1), x.size(1) / groups, kernel_height, weight_columns};
  MaskedConv2dGradWeight args{GMFAST_GEOMETRY_OF.arguments(sizes_of(x), sizes), weight_columns};
  check_like("grad", grad, x, {x.size(0), grad.size(1), x.size(2), x.size(3) - left});
  Tensor grad_weight = empty_contiguous(x, sizes, x.scalar_type());
  Tensor grad_bias = empty_contiguous(x, {want_bias ? grad.size(1) : 0}, x.scalar_type());
  args.forward.x = from_column(x, left);
  args.forward.y = grid_of(grad);
  args.forward.weight = grid_of(grad_weight);
  if (want_bias) args.forward.bias = grid_of_row(grad_bias);
  GMFAST_RUN(masked_conv2d_grad_weight, x, args);
  return {grad_weight, grad_bias};
}

}  // namespace
}  // namespace gmfast

STABLE_TORCH_LIBRARY_FRAGMENT(gmfast, m) {
  m.def("masked_conv2d(Tensor x, Tensor weight, Tensor? bias, " GMFAST_GEOMETRY_SCHEMA
        ") -> Tensor");
  m.def("masked_conv2d_grad_input(Tensor grad, Tensor weight, " GMFAST_GEOMETRY_SCHEMA
        ") -> Tensor");
  m.def(
      "masked_conv2d_grad_weight(Tensor grad, Tensor x, int kernel_height, int weight_columns, "
      "bool want_bias, " GMFAST_GEOMETRY_SCHEMA ") -> (Tensor, Tensor)");
}

GMFAST_REGISTER(m) {
  m.impl("masked_conv2d", TORCH_BOX(&gmfast::forward));
  m.impl("masked_conv2d_grad_input", TORCH_BOX(&gmfast::grad_input));
  m.impl("masked_conv2d_grad_weight", TORCH_BOX(&gmfast::grad_weight));
}
