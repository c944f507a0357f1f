#include "../args/masked_conv2d.h"
#include "../math/masked_conv2d.h"
#include "implicit_gemm.h"
#include "types.h"

// Three products over the live taps alone. Depths and, for the gradient of the weight, columns run
// over pairs (tap, channel), so that few channels fill a tile as well as many do.
//
// Where N pixels of O channels see L pairs each, a product takes N O L multiplications and
// additions. 64 images of 32x32 with 128 channels, 3x3 B: 5 taps, L = 640, 5.4 G of them, for the
// FMA units of 132 multiprocessors at 1.98 GHz 0.16 ms, for tensor cores at 990 TFLOP/s 11 us. Each
// image moved once is 67 MB in float32, 16 us at 4.3 TB/s, and 8 us in 16 bits. So arithmetic is
// the floor, in 16 bits hardly more than memory.
//
// How far above it the kernel stays shows in what a thread does per 64 bytes of depth, forward:
//   float32  1024 FMA, 64 reads of 16 bytes from shared memory, 24 loads
//   16 bits  32 mma, 48 reads of 4 bytes, 48 loads; 6 loads where channels lie side by side
// A load costs a handful of instructions of addresses. In float32 the FMA units stay the limit, in
// 16 bits the instructions issued beside the mma are. A block has 64 channels and 128 pixels, so x
// is read O / 64 times per tap, 10 times here, all but the first from the caches.

namespace gmfast {
namespace {

// ---------------------------------------------------------------------------------------------
// Places in images
// ---------------------------------------------------------------------------------------------

struct Pixel {
  int64_t sample, row, column;

  GMFAST_DEVICE Pixel(int64_t index, int64_t height, int64_t width)
      : sample(index / (height * width)), row(index / width % height), column(index % width) {}
};

GMFAST_DEVICE int64_t offset_of(const Grid& grid, int64_t sample, int64_t channel, int64_t row,
                                int64_t column) {
  return sample * grid.batch_stride + channel * grid.channel_stride + row * grid.row_stride +
         column * grid.column_stride;
}

GMFAST_DEVICE int64_t clamp(int64_t value, int64_t limit) {
  return value < -limit ? -limit : value > limit ? limit : value;
}

// Where a tap looks, from its pixel; no farther than out of the image.
struct Shift {
  int64_t row, column;

  GMFAST_DEVICE Shift(const MaskedConv2d& conv, const ConvTap& tap)
      : row(clamp(tap.row_offset, conv.height)),
        column(clamp(tap.column_offset, conv.left + conv.width)) {}
};

// The pairs (tap, channel) with the current pixel's tap.
GMFAST_HD int64_t pairs(const MaskedConv2d& conv, int64_t channels) {
  return (earlier_taps(conv.support) + 1) * channels;
}

// How many pairs, from the first, an output channel sees, where pairs count the input channels.
GMFAST_HD int64_t visible_pairs(const MaskedConv2d& conv, int64_t out_channel) {
  return earlier_taps(conv.support) * conv.in_channels +
         visible_channels(conv.support, out_channel, conv.out_channels, conv.in_channels);
}

GMFAST_DEVICE int64_t last_of(int64_t first, int count, int64_t all) {
  return (first + count < all ? first + count : all) - 1;
}

// ---------------------------------------------------------------------------------------------
// y: rows are output channels, columns pixels, depths pairs (tap, input channel)
// ---------------------------------------------------------------------------------------------

struct Forward {
  MaskedConv2d conv;
  Operand a, b;  // weight, x
  int64_t groups, rows, columns;
  bool along_rows;

  // The current pixel's tap comes last; the block's last channel sees most of it.
  GMFAST_DEVICE Depths depths(int64_t first_row, int row_count, int64_t, int) const {
    return {0, visible_pairs(conv, last_of(first_row, row_count, rows))};
  }
  // The window of a channel of the weight are the pairs that it sees.
  GMFAST_DEVICE Position a_row(int64_t group, int64_t row) const {
    return {(group * rows + row) * conv.weight.batch_stride, 0,
            a.width - uint32_t(visible_pairs(conv, row))};
  }
  GMFAST_DEVICE Position b_column(int64_t group, int64_t column) const {
    const Pixel p(column, conv.height, conv.width);
    return {offset_of(conv.x, p.sample, group * conv.in_channels, p.row, p.column), uint32_t(p.row),
            uint32_t(conv.left + p.column)};
  }
  GMFAST_DEVICE void at_depth(int64_t depth, Position& a, Position& b) const {
    const int64_t channel = depth % conv.in_channels;
    const ConvTap at = tap(conv.support, depth / conv.in_channels);
    const Shift shift(conv, at);
    a = {offset_of(conv.weight, 0, channel, at.row, at.column), 0, uint32_t(depth)};
    b = {offset_of(conv.x, 0, channel, shift.row, shift.column), uint32_t(shift.row),
         uint32_t(shift.column)};
  }
  GMFAST_DEVICE Position c_row(int64_t group, int64_t row) const {
    const int64_t channel = group * rows + row;
    return {channel * conv.y.channel_stride, 0, uint32_t(channel)};
  }
  GMFAST_DEVICE Position c_column(int64_t, int64_t column) const {
    const Pixel p(column, conv.height, conv.width);
    return {offset_of(conv.y, p.sample, 0, p.row, p.column), 0, 0};
  }
  template <class T, class S>
  GMFAST_DEVICE void store_sum(const Position& row, const Position& column, S sum) const {
    if (conv.bias.data) {
      sum += load_element<S>(static_cast<const T*>(conv.bias.data) +
                             row.column * conv.bias.channel_stride);
    }
    store_element(static_cast<T*>(conv.y.data) + (row + column).offset, sum);
  }
};

// ---------------------------------------------------------------------------------------------
// The gradient of x: rows are input channels, columns pixels, with those left of the image, depths
// pairs (tap, output channel)
// ---------------------------------------------------------------------------------------------

struct GradInput {
  MaskedConv2d conv;
  Operand a, b;  // weight, gradient of y
  int64_t groups, rows, columns;
  bool along_rows;

  // Taps are taken from the current pixel's back: the channels that do not see a row come first.
  GMFAST_DEVICE int64_t first_pair(int64_t in_channel) const {
    return first_seeing_channel(conv.support, in_channel, conv.out_channels, conv.in_channels);
  }
  GMFAST_DEVICE Depths depths(int64_t first_row, int, int64_t, int) const {
    const int64_t first = first_pair(first_row);
    return {first / 16 * 16, pairs(conv, conv.out_channels)};
  }
  GMFAST_DEVICE Position a_row(int64_t group, int64_t row) const {
    return {group * conv.out_channels * conv.weight.batch_stride + row * conv.weight.channel_stride,
            0, uint32_t(-first_pair(row))};
  }
  GMFAST_DEVICE Position b_column(int64_t group, int64_t column) const {
    const Pixel p(column, conv.height, conv.left + conv.width);
    const int64_t at = p.column - conv.left;
    return {offset_of(conv.y, p.sample, group * conv.out_channels, p.row, at), uint32_t(p.row),
            uint32_t(at)};
  }
  GMFAST_DEVICE void at_depth(int64_t depth, Position& a, Position& b) const {
    const int64_t channel = depth % conv.out_channels;
    const ConvTap at = tap(conv.support, earlier_taps(conv.support) - depth / conv.out_channels);
    const Shift shift(conv, at);
    a = {offset_of(conv.weight, channel, 0, at.row, at.column), 0, uint32_t(depth)};
    b = {offset_of(conv.y, 0, channel, -shift.row, -shift.column), uint32_t(-shift.row),
         uint32_t(-shift.column)};
  }
  GMFAST_DEVICE Position c_row(int64_t group, int64_t row) const {
    return {(group * rows + row) * conv.x.channel_stride, 0, 0};
  }
  GMFAST_DEVICE Position c_column(int64_t, int64_t column) const {
    const Pixel p(column, conv.height, conv.left + conv.width);
    return {offset_of(conv.x, p.sample, 0, p.row, p.column - conv.left), 0, 0};
  }
  template <class T, class S>
  GMFAST_DEVICE void store_sum(const Position& row, const Position& column, S sum) const {
    store_element(static_cast<T*>(conv.x.data) + (row + column).offset, sum);
  }
};

// ---------------------------------------------------------------------------------------------
// The gradients of weight and bias: rows are output channels, depths pixels, columns the pairs
// (tap, input channel), then a 1 for the bias, then the pairs that no channel sees
//
// There are few columns and many pixels: a block has 32 by 32 of C, 80 blocks in the example above,
// and its 8 warps take the pixels in turns. Both images are then read 20 times, 1.3 GB in float32,
// mostly from the L2 cache: as much time as the arithmetic. A 1x1 kernel has only 16 blocks.
// ---------------------------------------------------------------------------------------------

struct GradWeight {
  MaskedConv2d conv;
  int64_t weight_columns;
  Operand a, b;  // gradient of y, x
  int64_t groups, rows, columns;
  bool along_rows;

  GMFAST_HD int64_t seen_pairs() const { return pairs(conv, conv.in_channels); }
  GMFAST_HD int64_t bias_columns() const { return conv.bias.data ? 1 : 0; }

  GMFAST_DEVICE Depths depths(int64_t first_row, int row_count, int64_t first_column,
                              int column_count) const {
    const bool bias = bias_columns() && first_column <= seen_pairs() &&
                      first_column + column_count > seen_pairs();
    const int64_t seen = visible_pairs(conv, last_of(first_row, row_count, rows));
    return {0, bias || first_column < seen ? conv.batch * conv.height * conv.width : 0};
  }
  GMFAST_DEVICE Position a_row(int64_t group, int64_t row) const {
    return {(group * rows + row) * conv.y.channel_stride, 0, 0};
  }
  GMFAST_DEVICE Position b_column(int64_t group, int64_t column) const {
    if (column >= seen_pairs()) {
      return column < seen_pairs() + bias_columns() ? everywhere_one() : nowhere();
    }
    const Shift shift(conv, tap(conv.support, column / conv.in_channels));
    return {offset_of(conv.x, 0, group * conv.in_channels + column % conv.in_channels, shift.row,
                      shift.column),
            uint32_t(shift.row), uint32_t(shift.column)};
  }
  GMFAST_DEVICE void at_depth(int64_t depth, Position& a, Position& b) const {
    const Pixel p(depth, conv.height, conv.width);
    a = {offset_of(conv.y, p.sample, 0, p.row, p.column), 0, 0};
    b = {offset_of(conv.x, p.sample, 0, p.row, p.column), uint32_t(p.row),
         uint32_t(conv.left + p.column)};
  }
  // Of the rows, `row` is the channel and `column` how many of the pairs it does not see; of the
  // columns, `row` is 1 for the bias and `column` the pair.
  GMFAST_DEVICE Position c_row(int64_t group, int64_t row) const {
    const int64_t channel = group * rows + row;
    return {channel * conv.weight.batch_stride, uint32_t(channel),
            uint32_t(seen_pairs() - visible_pairs(conv, row))};
  }
  GMFAST_DEVICE Position c_column(int64_t, int64_t column) const {
    if (bias_columns() && column == seen_pairs()) return {0, 1, 0};
    const int64_t pair = column > seen_pairs() ? column - bias_columns() : column;
    const ConvTap at = tap(conv.support, pair / conv.in_channels);
    if (at.column >= weight_columns) return nowhere();
    return {offset_of(conv.weight, 0, pair % conv.in_channels, at.row, at.column), 0,
            uint32_t(pair)};
  }
  template <class T, class S>
  GMFAST_DEVICE void store_sum(const Position& row, const Position& column, S sum) const {
    if (column.row == 1) {
      store_element(static_cast<T*>(conv.bias.data) + row.row * conv.bias.channel_stride, sum);
    } else {
      const bool seen = row.column + column.column < seen_pairs();
      store_element(static_cast<T*>(conv.weight.data) + (row + column).offset, seen ? sum : S(0));
    }
  }
};

// ---------------------------------------------------------------------------------------------
// On the host: x, weight, bias and y are of one dtype
// ---------------------------------------------------------------------------------------------

void check_size(const char* name, int64_t size) {
  if (size > max_window) {
    throw std::runtime_error("gmfast: masked_conv2d: expected at most " +
                             std::to_string(max_window) + " " + name + ", got " +
                             std::to_string(size));
  }
}

void check(const MaskedConv2d& conv) {
  check_size("rows of x", conv.height);
  check_size("columns of x", conv.left + conv.width);
  check_size("output channels", conv.groups * conv.out_channels);
  check_size("input channels of all live taps", pairs(conv, conv.in_channels));
  check_size("output channels of all live taps", pairs(conv, conv.out_channels));
}

// An operand whose depths run along one dimension of a grid and whose lines along another. `run`
// depths from a multiple of `run` on lie in one tap and row, `advance` columns of the window apart.
enum Dimension { batch_dimension, channel_dimension, row_dimension, column_dimension };

template <class T>
Operand operand_of(const Grid& grid, const int64_t (&sizes)[4], Dimension depth, Dimension line,
                   int64_t run, uint32_t advance) {
  const int64_t strides[4] = {grid.batch_stride, grid.channel_stride, grid.row_stride,
                              grid.column_stride};
  Operand operand;
  operand.data = grid.data;
  operand.stride = strides[depth];
  operand.advance = advance;
  operand.along_depth = strides[depth] <= strides[line];
  operand.regular = run % pack_elements<T> == 0;
  operand.packed =
      operand.regular && operand.stride == 1 && reinterpret_cast<uintptr_t>(grid.data) % 16 == 0;
  for (int d = 0; d < 4; ++d) {
    operand.packed =
        operand.packed && (d == depth || sizes[d] == 1 || strides[d] % pack_elements<T> == 0);
  }
  return operand;
}

template <class T>
Operand weight_operand(const MaskedConv2d& conv, Dimension depth, Dimension line, int64_t run) {
  const int64_t sizes[4] = {conv.groups * conv.out_channels, conv.in_channels,
                            conv.support.kernel_height, conv.support.kernel_width};
  Operand operand = operand_of<T>(conv.weight, sizes, depth, line, run, 1);
  operand.width = uint32_t(pairs(conv, run));
  return operand;
}

// A block of 64 by 128 of C (64 by 64 in double) for 4 warps.
template <class T>
using Wide = Tiling<T, sizeof(T) == 8 ? 32 : 64, 2, 2, 1, sizeof(T) == 4 ? 3 : 2>;
// 32 by 32, and 8 warps that share the depths.
template <class T>
using Deep = Tiling<T, 32, 1, 1, 8, 1>;

template <class T>
void run_forward(const MaskedConv2d& conv, void* stream) {
  const int64_t channels = conv.in_channels, width = conv.left + conv.width;
  Forward problem{};
  problem.conv = conv;
  problem.a = weight_operand<T>(conv, channel_dimension, batch_dimension, channels);
  problem.b = operand_of<T>(conv.x, {conv.batch, conv.groups * channels, conv.height, width},
                            channel_dimension, column_dimension, channels, 0);
  problem.b.height = uint32_t(conv.height);
  problem.b.width = uint32_t(width);
  problem.groups = conv.groups;
  problem.rows = conv.out_channels;
  problem.columns = conv.batch * conv.height * conv.width;
  problem.along_rows = conv.y.channel_stride < conv.y.column_stride;
  launch_gemm<T, Wide<T>>(problem, stream);
}

template <class T>
void run_grad_input(const MaskedConv2d& conv, void* stream) {
  const int64_t channels = conv.out_channels;
  GradInput problem{};
  problem.conv = conv;
  problem.a = weight_operand<T>(conv, batch_dimension, channel_dimension, channels);
  problem.b = operand_of<T>(conv.y, {conv.batch, conv.groups * channels, conv.height, conv.width},
                            channel_dimension, column_dimension, channels, 0);
  problem.b.height = uint32_t(conv.height);
  problem.b.width = uint32_t(conv.width);
  problem.groups = conv.groups;
  problem.rows = conv.in_channels;
  problem.columns = conv.batch * conv.height * (conv.left + conv.width);
  problem.along_rows = conv.x.channel_stride < conv.x.column_stride;
  launch_gemm<T, Wide<T>>(problem, stream);
}

template <class T>
void run_grad_weight(const MaskedConv2d& conv, int64_t weight_columns, void* stream) {
  const ConvSupport& support = conv.support;
  const int64_t width = conv.left + conv.width;
  GradWeight problem{};
  problem.conv = conv;
  problem.weight_columns = weight_columns;
  problem.a =
      operand_of<T>(conv.y, {conv.batch, conv.groups * conv.out_channels, conv.height, conv.width},
                    column_dimension, channel_dimension, conv.width, 0);
  problem.b =
      operand_of<T>(conv.x, {conv.batch, conv.groups * conv.in_channels, conv.height, width},
                    column_dimension, channel_dimension, conv.width, 1);
  problem.b.packed = false;  // a tap shifts by any number of columns
  problem.b.height = uint32_t(conv.height);
  problem.b.width = uint32_t(width);
  problem.groups = conv.groups;
  problem.rows = conv.out_channels;
  problem.columns =
      ((support.kernel_height - 1) * support.kernel_width + weight_columns) * conv.in_channels +
      problem.bias_columns();
  problem.along_rows = conv.weight.batch_stride < conv.weight.channel_stride;
  launch_gemm<T, Deep<T>>(problem, stream);
}

}  // namespace

void masked_conv2d_cuda(const MaskedConv2d& args, void* stream) {
  check(args);
  with_type<double>(args.x.dtype, [&](auto* type) {
    run_forward<std::remove_pointer_t<decltype(type)>>(args, stream);
  });
}

void masked_conv2d_grad_input_cuda(const MaskedConv2dGradInput& args, void* stream) {
  check(args.forward);
  with_type<double>(args.forward.x.dtype, [&](auto* type) {
    run_grad_input<std::remove_pointer_t<decltype(type)>>(args.forward, stream);
  });
}

void masked_conv2d_grad_weight_cuda(const MaskedConv2dGradWeight& args, void* stream) {
  check(args.forward);
  with_type<double>(args.forward.x.dtype, [&](auto* type) {
    run_grad_weight<std::remove_pointer_t<decltype(type)>>(args.forward, args.weight_columns,
                                                           stream);
  });
}

}  // namespace gmfast
