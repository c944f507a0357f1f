// What convolutions are made of: pixels packed so that a register tile walks them with constant
// strides, the register tiles, and the way back.
//
// Packed pixels lie as [block][row][column][channel of the block], a block's channels of one pixel
// filling a cache line. Panels, which are what a register tile multiplies by, hold panel_width
// output channels side by side.
#pragma once

#include <algorithm>
#include <cstring>

#include "../args/masked_conv2d.h"
#include "../math/simd.h"
#include "scratch.h"
#include "tile.h"

namespace gmfast {
inline namespace GMFAST_LEVEL {

template <class S>
constexpr int block_width = 64 / int(sizeof(S));
template <class S>
constexpr int panel_width = 2 * lanes<Native<S>>;

inline int64_t blocks_of(int64_t count, int64_t size) { return (count + size - 1) / size; }

// Rows and columns of one sample, end excluded.
struct Window {
  int64_t row, row_end, column, column_end;

  int64_t rows() const { return row_end - row; }
  int64_t columns() const { return column_end - column; }
  int64_t pixels() const { return rows() * columns(); }
};

// Calls body(row, rows, column, columns) for patches of at most `patch_pixels` pixels, or one row's
// `patch_pixels`: few enough for the first-level cache, and for partial sums to be short.
constexpr int64_t patch_pixels = 128;

template <class Body>
void for_each_patch(const Window& window, const Body& body) {
  const int64_t columns = std::min(window.columns(), patch_pixels);
  const int64_t rows = std::max<int64_t>(patch_pixels / std::max<int64_t>(columns, 1), 1);
  for (int64_t r = 0; r < window.rows(); r += rows) {
    for (int64_t c = 0; c < window.columns(); c += columns) {
      body(r, std::min(rows, window.rows() - r), c, std::min(columns, window.columns() - c));
    }
  }
}

// Calls body with a null pointer of the type that `dtype` names, one that is computed in S.
template <class S, class Body>
void with_storage(DType dtype, const Body& body) {
  with_type(dtype, [&](auto* type) {
    if constexpr (std::is_same_v<Compute<std::remove_pointer_t<decltype(type)>>, S>) body(type);
  });
}

// ---------------------------------------------------------------------------------------------
// Packing
// ---------------------------------------------------------------------------------------------

template <class T>
inline T* at(const Grid& grid, int64_t sample, int64_t channel, int64_t row, int64_t column) {
  return static_cast<T*>(grid.data) + sample * grid.batch_stride + channel * grid.channel_stride +
         row * grid.row_stride + column * grid.column_stride;
}

// `columns` pixels of one row, up to block_width channels of each; channels beyond `channels`
// become 0.
template <class T, class S>
void pack_row(const T* x, const Grid& grid, int64_t channels, int64_t columns, S* packed) {
  using V = Native<S>;
  constexpr int L = lanes<V>, B = block_width<S>;
  for (int first = 0; first < B; first += L, x += L * grid.channel_stride, packed += L) {
    const int count = int(std::clamp<int64_t>(channels - first, 0, L));
    if (count == 0 || (grid.channel_stride == 1 && count == L)) {
      for (int64_t c = 0; c < columns; ++c) {
        store(packed + c * B, count ? load<V>(x + c * grid.column_stride) : splat<V>(0));
      }
    } else if (grid.column_stride == 1) {
      for (int64_t c = 0; c < columns; c += L) {
        const int length = int(std::min<int64_t>(columns - c, L));
        V rows[L];
        for (int i = 0; i < L; ++i) {
          const T* source = x + i * grid.channel_stride + c;
          rows[i] = i >= count    ? splat<V>(0)
                    : length == L ? load<V>(source)
                                  : load_partial<V>(source, length);
        }
        transpose(rows);
        for (int p = 0; p < length; ++p) store(packed + (c + p) * B, rows[p]);
      }
    } else {
      for (int64_t c = 0; c < columns; ++c) {
        T values[L] = {};
        for (int i = 0; i < count; ++i) {
          values[i] = x[c * grid.column_stride + i * grid.channel_stride];
        }
        store(packed + c * B, load<V>(values));
      }
    }
  }
}

// The window of `channels` channels from `channel` on. Where it reaches beyond `inside` there are
// zeros.
template <class T, class S>
void pack(const Grid& x, int64_t sample, int64_t channel, int64_t channels, const Window& window,
          const Window& inside, S* packed) {
  constexpr int B = block_width<S>;
  const int64_t columns = window.columns();
  const int64_t first = std::clamp(inside.column, window.column, window.column_end);
  const int64_t last = std::clamp(inside.column_end, first, window.column_end);
  for (int64_t done = 0; done < channels; done += B) {
    for (int64_t row = window.row; row < window.row_end; ++row, packed += columns * B) {
      const bool empty = row < inside.row || row >= inside.row_end;
      const int64_t begin = empty ? columns : first - window.column;
      const int64_t end = empty ? columns : last - window.column;
      std::memset(packed, 0, begin * B * sizeof(S));
      if (begin < end) {
        pack_row(at<const T>(x, sample, channel + done, row, first), x,
                 std::min<int64_t>(channels - done, B), end - begin, packed + begin * B);
      }
      std::memset(packed + end * B, 0, (columns - end) * B * sizeof(S));
    }
  }
}

// ---------------------------------------------------------------------------------------------
// Register tiles
// ---------------------------------------------------------------------------------------------

// sums += pixels times panel rows: `count` channels of N pixels that follow each other, and as many
// rows of a panel.
template <int N, int NV, class V>
GMFAST_HD void multiply_tile(const Scalar<V>* x, const Scalar<V>* panel, int64_t count,
                             V (&sums)[N][NV]) {
  using S = Scalar<V>;
  for (int64_t i = 0; i < count; ++i, panel += panel_width<S>) {
    V weight[NV];
    GMFAST_UNROLL
    for (int v = 0; v < NV; ++v) weight[v] = load<V>(panel + v * lanes<V>);
    GMFAST_UNROLL
    for (int p = 0; p < N; ++p) {
      const V pixel = splat<V>(x[p * block_width<S> + i]);
      GMFAST_UNROLL
      for (int v = 0; v < NV; ++v) sums[p][v] = fma(pixel, weight[v], sums[p][v]);
    }
  }
}

// sums += N pixels convolved: `count` channels of a block, seen through `taps` taps at `offsets`
// from x, times the panel's rows for them. A pixel's sums are panel_width numbers, NV vectors of
// which count.
template <class S, int N, int NV>
void convolve_tile(const S* x, const S* panel, int64_t count, const int64_t* offsets, int64_t taps,
                   S* sums) {
  using V = Native<S>;
  constexpr int P = panel_width<S>, L = lanes<V>;
  V tile[N][NV];
  GMFAST_UNROLL
  for (int p = 0; p < N; ++p) {
    GMFAST_UNROLL
    for (int v = 0; v < NV; ++v) tile[p][v] = load<V>(sums + p * P + v * L);
  }
  for (int64_t t = 0; t < taps; ++t, panel += count * P) {
    multiply_tile<N, NV, V>(x + offsets[t], panel, count, tile);
  }
  GMFAST_UNROLL
  for (int p = 0; p < N; ++p) {
    GMFAST_UNROLL
    for (int v = 0; v < NV; ++v) store(sums + p * P + v * L, tile[p][v]);
  }
}

// sums[n][channel] += x[p + offsets[n]] * y[p][channel] over a patch of pixels p, for the first
// `count` of N input channels, each seen through some tap, and a panel of output channels, whose
// second vector lies y_step behind the first.
template <class S, int N>
void correlate_tile(const S* x, const int64_t* offsets, int count, const S* y, int64_t y_step,
                    int64_t rows, int64_t columns, int64_t x_row, int64_t y_row, S* sums) {
  using V = Native<S>;
  constexpr int B = block_width<S>;
  V partial[N][2];
  const S* seen[N];
  GMFAST_UNROLL
  for (int n = 0; n < N; ++n) {
    partial[n][0] = partial[n][1] = splat<V>(0);
    seen[n] = x + offsets[n < count ? n : 0];
  }
  for (int64_t row = 0; row < rows; ++row, y += y_row) {
    for (int64_t c = 0; c < columns; ++c) {
      const V first = load<V>(y + c * B), second = load<V>(y + c * B + y_step);
      GMFAST_UNROLL
      for (int n = 0; n < N; ++n) {
        const V pixel = splat<V>(seen[n][row * x_row + c * B]);
        partial[n][0] = fma(pixel, first, partial[n][0]);
        partial[n][1] = fma(pixel, second, partial[n][1]);
      }
    }
  }
  GMFAST_UNROLL
  for (int n = 0; n < N; ++n, sums += panel_width<S>) {
    if (n >= count) return;
    store(sums, load<V>(sums) + partial[n][0]);
    store(sums + lanes<V>, load<V>(sums + lanes<V>) + partial[n][1]);
  }
}

// Pixels of a tile whose sums, with two vectors of weights and a pixel, fill the registers.
constexpr int widest_tile = native_bytes == 64 ? 8 : 6;

// The same for a row of pixels. Of the last tile some may lie beyond the row: x and sums have room
// for it.
template <class S, int NV>
void convolve_row(const S* x, const S* panel, int64_t count, const int64_t* offsets, int64_t taps,
                  int64_t pixels, S* sums) {
  constexpr int N = widest_tile, B = block_width<S>, P = panel_width<S>;
  for (; pixels > 4; pixels -= N, x += N * B, sums += N * P) {
    convolve_tile<S, N, NV>(x, panel, count, offsets, taps, sums);
  }
  if (pixels > 2) {
    convolve_tile<S, 4, NV>(x, panel, count, offsets, taps, sums);
  } else if (pixels == 2) {
    convolve_tile<S, 2, NV>(x, panel, count, offsets, taps, sums);
  } else if (pixels == 1) {
    convolve_tile<S, 1, NV>(x, panel, count, offsets, taps, sums);
  }
}

// ---------------------------------------------------------------------------------------------
// Unpacking
// ---------------------------------------------------------------------------------------------

// A row of `columns` pixels, panel_width numbers each, to `channels` channels of y, plus the bias.
template <class T, class S>
void unpack_row(const S* row, const S* bias, int64_t channels, int64_t columns, T* y,
                const Grid& grid) {
  using V = Native<S>;
  constexpr int L = lanes<V>, P = panel_width<S>;
  for (int first = 0; first < P; first += L, row += L, bias += L, y += L * grid.channel_stride) {
    const int count = int(std::clamp<int64_t>(channels - first, 0, L));
    if (count == 0) return;
    const V add = load<V>(bias);
    if (grid.channel_stride == 1 && count == L) {
      for (int64_t c = 0; c < columns; ++c) {
        store(y + c * grid.column_stride, load<V>(row + c * P) + add);
      }
    } else if (grid.column_stride == 1) {
      for (int64_t c = 0; c < columns; c += L) {
        const int length = int(std::min<int64_t>(columns - c, L));
        V rows[L];
        for (int p = 0; p < L; ++p)
          rows[p] = load<V>(row + (c + std::min(p, length - 1)) * P) + add;
        transpose(rows);
        for (int i = 0; i < count; ++i) {
          T* target = y + i * grid.channel_stride + c;
          length == L ? store(target, rows[i]) : store_partial(target, rows[i], length);
        }
      }
    } else {
      for (int64_t c = 0; c < columns; ++c) {
        T values[L];
        store(values, load<V>(row + c * P) + add);
        for (int i = 0; i < count; ++i) {
          y[c * grid.column_stride + i * grid.channel_stride] = values[i];
        }
      }
    }
  }
}

}  // namespace GMFAST_LEVEL
}  // namespace gmfast
