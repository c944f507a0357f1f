// Reading and writing the pixels of a batch of images, of any dtype and strides.
#pragma once

#include "../common/tensor.h"
#include "launch.h"
#include "types.h"

namespace gmfast {

// Pixels are numbered through the batch.
struct Place {
  int64_t sample, pixel;

  GMFAST_DEVICE Place(int64_t index, int64_t pixels)
      : sample(index / pixels), pixel(index % pixels) {}
};

GMFAST_DEVICE int64_t offset_of(const Image& image, const Place& place) {
  return place.sample * image.batch_stride + place.pixel * image.pixel_stride;
}

// Channels first, first + step, ... of a pixel. All loads are under way before the first is needed.
template <class S, int count>
GMFAST_DEVICE void read_channels(const Image& image, const Place& place, int64_t first,
                                 int64_t step, S (&values)[count]) {
  with_type<S>(image.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const T* p =
        static_cast<const T*>(image.data) + offset_of(image, place) + first * image.channel_stride;
    T raw[count];
    GMFAST_UNROLL
    for (int i = 0; i < count; ++i) raw[i] = p[i * (step * image.channel_stride)];
    GMFAST_UNROLL
    for (int i = 0; i < count; ++i) values[i] = load<S>(&raw[i]);
  });
}

template <class S, int count>
GMFAST_DEVICE void write_channels(const Image& image, const Place& place, int64_t first,
                                  int64_t step, const S (&values)[count]) {
  with_type<S>(image.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    T* p = static_cast<T*>(image.data) + offset_of(image, place) + first * image.channel_stride;
    GMFAST_UNROLL
    for (int i = 0; i < count; ++i) store(p + i * (step * image.channel_stride), values[i]);
  });
}

// Images with adjacent channels pass through a tile in shared memory, one pixel after another, a
// warp to each, so that the warp's accesses are adjacent. Neighbouring pixels of a tile are an odd
// number of elements apart: 32 threads that read one channel each meet 32 banks.
inline bool adjacent_channels(const Image& image) {
  return image.data && image.channel_stride == 1 && image.pixel_stride != 1;
}

GMFAST_HD int tile_pitch(int channels) { return channels | 1; }

// For each element of `count` pixels from number `first` on, body(element of the image, of the
// tile). Whole warps take part; the block must have at least one.
template <class T, class S, class Body>
GMFAST_DEVICE void for_each_in_tile(const Image& image, int64_t first, int count, int64_t pixels,
                                    int channels, S* tile, const Body& body) {
  const int warps = block_threads() / warp_size, lane = thread_index() % warp_size;
  const int warp = thread_index() / warp_size;
  if (warp >= warps) return;
  for (int p = warp; p < count; p += warps) {
    T* pixel = static_cast<T*>(image.data) + offset_of(image, Place(first + p, pixels));
    S* row = tile + p * tile_pitch(channels);
    GMFAST_UNROLL_BY(4)
    for (int c = lane; c < channels; c += warp_size) body(pixel + c, row + c);
  }
}

template <class S>
GMFAST_DEVICE void load_tile(const Image& image, int64_t first, int count, int64_t pixels,
                             int channels, S* tile) {
  with_type<S>(image.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    for_each_in_tile<T>(image, first, count, pixels, channels, tile,
                        [](const T* from, S* to) { *to = load<S>(from); });
  });
}

template <class S>
GMFAST_DEVICE void store_tile(const Image& image, int64_t first, int count, int64_t pixels,
                              int channels, S* tile) {
  with_type<S>(image.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    for_each_in_tile<T>(image, first, count, pixels, channels, tile,
                        [](T* to, const S* from) { store(to, *from); });
  });
}

}  // namespace gmfast
