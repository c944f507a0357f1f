// The live taps of a masked convolution, those before the current pixel in raster order: the rows
// above the middle one, and in it the columns left of the middle; at the middle tap, the current
// pixel, the channels that the mask type and the channel groups allow.
#pragma once

#include <cstdint>

#include "simd.h"

namespace gmfast {

struct ConvSupport {
  int64_t kernel_height = 1, kernel_width = 1;  // of the full kernel, both odd
  int64_t row_dilation = 1, column_dilation = 1;
  int64_t channel_groups = 1;  // autoregressive order within a pixel, such as R, G, B: equal groups
  bool sees_itself = true;     // mask type B
};

inline namespace GMFAST_LEVEL {

// A tap's place in the kernel; at (row, column) it reads (row + row_offset, column +
// column_offset).
struct ConvTap {
  int64_t row, column, row_offset, column_offset;
};

// The number of taps before the current pixel, whose channels are all live. They come first, in
// raster order; then the current pixel's.
GMFAST_HD int64_t earlier_taps(const ConvSupport& s) {
  return s.kernel_height / 2 * s.kernel_width + s.kernel_width / 2;
}

// The number of taps with a live channel.
GMFAST_HD int64_t live_taps(const ConvSupport& s) {
  return earlier_taps(s) + (s.sees_itself || s.channel_groups > 1);
}

GMFAST_HD ConvTap tap(const ConvSupport& s, int64_t index) {
  const int64_t row = index / s.kernel_width, column = index % s.kernel_width;
  return {row, column, (row - s.kernel_height / 2) * s.row_dilation,
          (column - s.kernel_width / 2) * s.column_dilation};
}

// The number of input channels, from the first, that an output channel sees at the current pixel.
GMFAST_HD int64_t visible_channels(const ConvSupport& s, int64_t out_channel, int64_t out_channels,
                                   int64_t in_channels) {
  const int64_t group = out_channel * s.channel_groups / out_channels;
  return (group + s.sees_itself) * (in_channels / s.channel_groups);
}

// The first output channel that sees an input channel there: the same relation, transposed.
GMFAST_HD int64_t first_seeing_channel(const ConvSupport& s, int64_t in_channel,
                                       int64_t out_channels, int64_t in_channels) {
  const int64_t group = in_channel * s.channel_groups / in_channels;
  return (group + !s.sees_itself) * (out_channels / s.channel_groups);
}

}  // namespace GMFAST_LEVEL
}  // namespace gmfast
