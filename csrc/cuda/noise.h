// Elementwise kernels over rows with noise (common/noise.h).
#pragma once

#include "../common/noise.h"
#include "rows.h"

namespace gmfast {

// What a thread has to do: of drawn numbers a block of them, 16 elements apart.
template <class S, bool drawn>
constexpr int noisy_elements = drawn ? numbers_per_block<S> : 4;

// Row::apply<S>(args, row, element, number) for every element, where row is Row::begin<S>(args,
// sample).
template <class Row, class S, bool drawn, class Args>
__global__ void __launch_bounds__(row_threads)
    noisy_rows_kernel(Args args, Noise noise, RowShape shape, int64_t blocks_of_sample) {
  const int64_t sample = block_index() / blocks_of_sample;
  const int64_t block = block_index() - sample * blocks_of_sample;
  const int64_t length = shape.rows * shape.inner;
  constexpr int count = noisy_elements<S, drawn>, step = drawn ? 16 : row_threads;
  const int64_t item = block * row_threads + thread_index();
  const int64_t first =
      drawn ? item / 16 * noise_tile<S> + item % 16 : block * row_threads * count + thread_index();
  if (first >= length) return;
  Numbers<S> numbers;
  if constexpr (drawn) numbers = normals<S>(stream_of(noise, sample), uint64_t(item));
  const auto row = Row::template begin<S>(args, sample);
  GMFAST_UNROLL
  for (int slot = 0; slot < count; ++slot) {
    const int64_t index = first + slot * step;
    if (index >= length) continue;
    const int64_t place = drawn ? place_in_walk(noise, index, length) : index;
    const RowElement at = element_of(shape, sample, place);
    if constexpr (drawn) {
      Row::template apply<S>(args, row, at, numbers.value[slot]);
    } else {
      Row::template apply<S>(args, row, at, read_row<S>(noise.given, at));
    }
  }
}

template <class Row, class S, bool drawn, class Args>
void launch_noisy_rows(const Args& args, const Noise& noise, const RowShape& shape, void* stream) {
  const int64_t blocks = ceil_div(shape.rows * shape.inner, row_threads * noisy_elements<S, drawn>);
  // Whole tiles of noise.
  const int64_t tiles = ceil_div(shape.rows * shape.inner, noise_tile<S>) * 16;
  const int64_t of_sample = drawn ? ceil_div(tiles, row_threads) : blocks;
  launch(noisy_rows_kernel<Row, S, drawn, Args>, shape.batch * of_sample, row_threads, 0, stream,
         args, noise, shape, of_sample);
}

template <class Row, class S, class Args>
void launch_noisy_rows(const Args& args, const Noise& noise, const RowShape& shape, void* stream) {
  noise.drawn() ? launch_noisy_rows<Row, S, true>(args, noise, shape, stream)
                : launch_noisy_rows<Row, S, false>(args, noise, shape, stream);
}

}  // namespace gmfast
