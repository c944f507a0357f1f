// Elementwise kernels over rows (common/rows.h), and sums over channels.
#pragma once

#include "../common/rows.h"
#include "launch.h"
#include "types.h"

namespace gmfast {

constexpr int row_threads = 256;

struct RowElement {
  int64_t sample, row, inner;
};

// Element `index` of a sample, in the order of the walk.
GMFAST_DEVICE RowElement element_of(const RowShape& shape, int64_t sample, int64_t index) {
  if (shape.rows == 1) return {sample, 0, index};
  if (shape.rows * shape.inner <= 0xffffffffLL) {  // the shorter division
    const uint32_t row = uint32_t(index) / uint32_t(shape.inner);
    return {sample, int64_t(row), int64_t(uint32_t(index) - row * uint32_t(shape.inner))};
  }
  return {sample, index / shape.inner, index % shape.inner};
}

GMFAST_DEVICE int64_t offset_of(const RowOperand& operand, const RowElement& at) {
  return at.sample * operand.batch_stride + at.row * operand.row_stride +
         at.inner * operand.inner_stride;
}

// 0 without data.
template <class S>
GMFAST_DEVICE S read_row(const RowOperand& operand, const RowElement& at) {
  S value = 0;
  if (!operand.data) return value;
  with_type<S>(operand.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    value = load_element<S>(static_cast<const T*>(operand.data) + offset_of(operand, at));
  });
  return value;
}

// Nothing without data.
template <class S>
GMFAST_DEVICE void write_row(const RowOperand& operand, const RowElement& at, S value) {
  if (!operand.data) return;
  with_type<S>(operand.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    store_element(static_cast<T*>(operand.data) + offset_of(operand, at), value);
  });
}

template <class S>
GMFAST_DEVICE S read_channel(const Channels& channels, int64_t c) {
  S value = 0;
  with_type<S>(channels.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    value = load_element<S>(static_cast<const T*>(channels.data) + c * channels.stride);
  });
  return value;
}

// Nothing without data.
GMFAST_DEVICE void write_channel(const Channels& channels, int64_t c, double value) {
  if (!channels.data) return;
  with_type<double>(channels.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    store_element(static_cast<T*>(channels.data) + c * channels.stride, value);
  });
}

// ---------------------------------------------------------------------------------------------
// Elementwise: Row::apply<S>(args, element) for every element
// ---------------------------------------------------------------------------------------------

constexpr int elements_of_thread = 4;

template <class Row, class S, class Args>
__global__ void __launch_bounds__(row_threads)
    rows_kernel(Args args, RowShape shape, int64_t blocks_of_sample) {
  const int64_t sample = block_index() / blocks_of_sample;
  const int64_t first =
      (block_index() - sample * blocks_of_sample) * (row_threads * elements_of_thread);
  const int64_t length = shape.rows * shape.inner;
  GMFAST_UNROLL
  for (int u = 0; u < elements_of_thread; ++u) {
    const int64_t index = first + u * row_threads + thread_index();
    if (index < length) Row::template apply<S>(args, element_of(shape, sample, index));
  }
}

template <class Row, class S, class Args>
void launch_rows(const Args& args, const RowShape& shape, void* stream) {
  const int64_t blocks = ceil_div(shape.rows * shape.inner, row_threads * elements_of_thread);
  launch(rows_kernel<Row, S, Args>, shape.batch * blocks, row_threads, 0, stream, args, shape,
         blocks);
}

// ---------------------------------------------------------------------------------------------
// Sums of channels: Row::apply<S>(args, element, terms) makes two terms of every element, and
// Row::finish<S>(args, channel, sums) takes a channel's sums, from a second launch
// ---------------------------------------------------------------------------------------------

template <class Row, class S, class Args>
__global__ void __launch_bounds__(row_threads)
    channel_sum_kernel(Args args, RowShape shape, ChannelSum sum) {
  const int lanes = int(sum.lanes), lane = thread_index() % lanes;
  const int64_t groups = (sum.channels + lanes - 1) / lanes;
  const int64_t segment = block_index() / groups;
  const int64_t channel = (block_index() - segment * groups) * lanes + lane;
  const int64_t first = segment * sum.segment, rest = sum.positions - first;
  const int64_t end = first + (rest < sum.segment ? rest : sum.segment);
  const int64_t pixels = lanes > 1 ? shape.rows : shape.inner;
  double sums[2] = {0, 0};
  if (channel < sum.channels) {
    const int64_t step = row_threads / lanes, start = first + thread_index() / lanes;
    const int64_t step_samples = step / pixels, step_pixels = step % pixels;
    int64_t sample = start / pixels, pixel = start % pixels;
    for (int64_t p = start; p < end; p += step) {
      S terms[2];
      Row::template apply<S>(
          args, lanes > 1 ? RowElement{sample, pixel, channel} : RowElement{sample, channel, pixel},
          terms);
      sums[0] += terms[0];
      sums[1] += terms[1];
      sample += step_samples;
      pixel += step_pixels;
      if (pixel >= pixels) {
        pixel -= pixels;
        ++sample;
      }
    }
  }
  double* to = sum.scratch + segment * 2 * sum.channels;
  if (lanes == 1) {
    sums[0] = block_sum<row_threads>(sums[0]);
    sums[1] = block_sum<row_threads>(sums[1]);
    if (thread_index() == 0) {
      to[channel] = sums[0];
      to[sum.channels + channel] = sums[1];
    }
    return;
  }
  __shared__ double of_threads[2][row_threads];
  of_threads[0][thread_index()] = sums[0];
  of_threads[1][thread_index()] = sums[1];
  __syncthreads();
  if (thread_index() < 2 * lanes && channel < sum.channels) {
    const int which = thread_index() / lanes;
    double total = 0;
    for (int t = lane; t < row_threads; t += lanes) total += of_threads[which][t];
    to[which * sum.channels + channel] = total;
  }
}

template <class Row, class S, class Args>
__global__ void __launch_bounds__(row_threads) channel_finish_kernel(Args args, ChannelSum sum) {
  const auto shared = Row::template share<S>(args);  // by the whole block
  const int64_t channel = block_index() * row_threads + thread_index();
  if (channel >= sum.channels) return;
  double sums[2] = {0, 0};
  for (int64_t segment = 0; segment < sum.segments; ++segment) {
    const double* from = sum.scratch + segment * 2 * sum.channels;
    sums[0] += from[channel];
    sums[1] += from[sum.channels + channel];
  }
  Row::template finish<S>(args, channel, sums, shared);
}

template <class Row, class S, class Args>
void launch_channel_sum(const Args& args, const RowShape& shape, const ChannelSum& sum,
                        void* stream) {
  launch(channel_sum_kernel<Row, S, Args>, ceil_div(sum.channels, sum.lanes) * sum.segments,
         row_threads, 0, stream, args, shape, sum);
  launch(channel_finish_kernel<Row, S, Args>, ceil_div(sum.channels, row_threads), row_threads, 0,
         stream, args, sum);
}

}  // namespace gmfast
