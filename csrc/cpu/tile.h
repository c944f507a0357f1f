// Images in and out of tiles. A tile holds the channels of up to `tile_pixels` consecutive pixels
// of an Image, row after row, in the compute type: kernels see one layout and one type, and every
// stride and dtype is dealt with here. Pixels are numbered through the batch, so that small images
// fill a tile too.
#pragma once

#include <cstdlib>
#include <new>

#include "../common/tensor.h"
#include "../math/simd.h"

namespace gmfast {
inline namespace GMFAST_LEVEL {

// Enough pixels to use whole cache lines and pages of a channel before the next channel's line,
// which lies in the same set of the cache, comes in; few enough for a hundred rows to stay in the
// cache.
constexpr int tile_pixels = 64;

// Room for `rows` rows, freed with the object.
template <class S>
class Tile {
 public:
  explicit Tile(int64_t rows)
      : data_(static_cast<S*>(std::aligned_alloc(64, rows * tile_pixels * sizeof(S)))) {
    if (rows > 0 && !data_) throw std::bad_alloc();
  }
  Tile(const Tile&) = delete;
  Tile& operator=(const Tile&) = delete;
  ~Tile() { std::free(data_); }

  S* row(int64_t index) { return data_ + index * tile_pixels; }

 private:
  S* data_;
};

// The pixels of a tile that lie in one sample.
struct Run {
  int64_t sample, pixel;
  int start, count;  // within the tile
};

template <class Body>
GMFAST_HD void for_each_run(int64_t first, int count, int64_t pixels, const Body& body) {
  int64_t sample = first / pixels, pixel = first % pixels;
  for (int start = 0; start < count; ++sample, pixel = 0) {
    const int length = int(pixels - pixel < count - start ? pixels - pixel : count - start);
    body(Run{sample, pixel, start, length});
    start += length;
  }
}

template <class T>
inline T* at(const Image& image, const Run& run) {
  return static_cast<T*>(image.data) + run.sample * image.batch_stride +
         run.pixel * image.pixel_stride;
}

enum class Copy { in, out };

// Between `lanes<V>` consecutive elements of an image and of a tile's row.
template <Copy direction, class V, class T>
GMFAST_HD void copy(T* image, Scalar<V>* tile) {
  if constexpr (direction == Copy::in) {
    store(tile, load<V>(image));
  } else {
    store(image, load<V>(tile));
  }
}

// Between `filled` adjacent channels of as many pixels as V has lanes, and as many rows of a tile.
template <Copy direction, class V, class T>
GMFAST_HD void copy_block(T* pixel, int64_t pixel_stride, int filled, Scalar<V>* rows) {
  V block[lanes<V>];
  if (filled == lanes<V>) {
    for (int l = 0; l < lanes<V>; ++l) {
      block[l] = direction == Copy::in ? load<V>(pixel + l * pixel_stride)
                                       : load<V>(rows + l * tile_pixels);
    }
  } else {
    for (int l = 0; l < lanes<V>; ++l) {
      if constexpr (direction == Copy::in) {
        block[l] = load_partial<V>(pixel + l * pixel_stride, filled);
      } else {
        block[l] = l < filled ? load<V>(rows + l * tile_pixels) : splat<V>(0);
      }
    }
  }
  transpose(block);
  for (int l = 0; l < lanes<V>; ++l) {
    if constexpr (direction == Copy::in) {
      if (l < filled) store(rows + l * tile_pixels, block[l]);
    } else if (filled == lanes<V>) {
      store(pixel + l * pixel_stride, block[l]);
    } else {
      store_partial(pixel + l * pixel_stride, block[l], filled);
    }
  }
}

// Between `channels` rows from `rows` on and a run's pixels.
template <Copy direction, class T, class S>
void copy_run(const Image& image, const Run& run, int64_t channels, S* rows) {
  using V = Native<S>;
  T* pixel = static_cast<T*>(image.data) + run.sample * image.batch_stride +
             run.pixel * image.pixel_stride;
  const int64_t channel_stride = image.channel_stride, pixel_stride = image.pixel_stride;
  const auto row = [&](int64_t c) { return rows + c * tile_pixels + run.start; };

  // Whole vectors: along the row, or for adjacent channels as a block that is transposed.
  int64_t blocked_channels = 0;
  int blocked_pixels = run.count / lanes<V> * lanes<V>;
  if (pixel_stride == 1) {
    blocked_channels = channels;
    for (int64_t c = 0; c < channels; ++c) {
      for (int i = 0; i < blocked_pixels; i += lanes<V>) {
        copy<direction, V>(pixel + c * channel_stride + i, row(c) + i);
      }
    }
  } else if (channel_stride == 1) {
    // Of a block that the channels do not fill, the lanes that they do.
    constexpr bool partial = std::is_same<T, S>::value;
    blocked_channels = partial ? channels : channels / lanes<V> * lanes<V>;
    for (int64_t c = 0; c < blocked_channels; c += lanes<V>) {
      const int filled = int(channels - c < lanes<V> ? channels - c : lanes<V>);
      for (int i = 0; i < blocked_pixels; i += lanes<V>) {
        copy_block<direction, V>(pixel + i * pixel_stride + c, pixel_stride, filled, row(c) + i);
      }
    }
  }
  for (int64_t c = 0; c < channels; ++c) {
    for (int i = c < blocked_channels ? blocked_pixels : 0; i < run.count; ++i) {
      copy<direction, S>(pixel + c * channel_stride + i * pixel_stride, row(c) + i);
    }
  }
}

template <Copy direction, class T, class S>
void copy_run(const Image& image, const Run& run, int64_t channels, Tile<S>& tile) {
  copy_run<direction, T>(image, run, channels, tile.row(0));
}

// Calls body with a null pointer of the type that `dtype` names.
template <class Body>
GMFAST_HD void with_type(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::float32:
      return body(static_cast<float*>(nullptr));
    case DType::float64:
      return body(static_cast<double*>(nullptr));
    case DType::bfloat16:
      return body(static_cast<BFloat16*>(nullptr));
    case DType::float16:
      return body(static_cast<Half*>(nullptr));
  }
}

// Pixels [first, first + count) of the image, counted through the batch. Lanes beyond are zero.
template <class S>
void load_tile(const Image& image, int64_t first, int count, int64_t channels, int64_t pixels,
               Tile<S>& tile) {
  with_type(image.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    for_each_run(first, count, pixels,
                 [&](const Run& run) { copy_run<Copy::in, T>(image, run, channels, tile); });
  });
  for (int64_t c = 0; count < tile_pixels && c < channels; ++c) {
    for (int i = count; i < tile_pixels; ++i) tile.row(c)[i] = 0;
  }
}

// Brings a line nearer. GCC drops calls of functions that do nothing but prefetch, hence the asm.
template <bool for_writing>
inline void prefetch_line(const char* p) {
  __builtin_prefetch(p, for_writing);
  asm volatile("");
}

// Smaller operands stay in a core's own cache, where prefetching them only costs.
inline bool worth_prefetching(int64_t bytes) { return bytes > 2 << 20; }

// Brings part `part` of `parts` of a tile's pixels nearer, so that the memory works while a kernel
// computes another tile. A hundred channels are more streams than the hardware follows by itself.
template <bool for_writing>
inline void prefetch_tile(const Image& image, int64_t first, int64_t count, int64_t channels,
                          int64_t pixels, int part, int parts) {
  const int64_t size = element_size(image.dtype);
  const int length = tile_pixels / parts;
  const int64_t pixel = first % pixels + part * length;
  if (part * length >= count || pixel >= pixels) return;
  const char* from = static_cast<const char*>(image.data) +
                     (first / pixels * image.batch_stride + pixel * image.pixel_stride) * size;
  constexpr int line = 64;
  if (image.pixel_stride == 1) {
    for (int64_t c = 0; c < channels; ++c) {
      const char* row = from + c * image.channel_stride * size;
      for (int64_t byte = 0; byte < length * size; byte += line)
        prefetch_line<for_writing>(row + byte);
    }
  } else if (image.channel_stride == 1) {
    // Once a line where it has many pixels.
    const int64_t row_size = image.pixel_stride * size;
    const int step = row_size > 0 && row_size < line ? int(line / row_size) : 1;
    for (int p = 0; p < length && pixel + p < pixels; p += step) {
      const char* row = from + p * image.pixel_stride * size;
      for (int64_t byte = 0; byte < channels * size; byte += line)
        prefetch_line<for_writing>(row + byte);
    }
  }
}

template <class S>
void store_tile(const Image& image, int64_t first, int count, int64_t channels, int64_t pixels,
                Tile<S>& tile) {
  with_type(image.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    for_each_run(first, count, pixels,
                 [&](const Run& run) { copy_run<Copy::out, T>(image, run, channels, tile); });
  });
}

}  // namespace GMFAST_LEVEL
}  // namespace gmfast
