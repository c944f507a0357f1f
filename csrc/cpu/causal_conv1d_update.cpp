// A step moves few numbers, strided as they come: what counts is that there is no copy and no
// second pass.
#include "../causal_conv1d_update.h"

#include <algorithm>

#include "../math/causal_conv1d.h"
#include "parallel.h"
#include "tile.h"

namespace gmfast {
inline namespace GMFAST_LEVEL {
namespace {

// Some channels' numbers, of a stream or of the weight.
template <class T>
struct Strided {
  T* data;
  int64_t channel_stride, stride;

  T* at(int64_t channel, int64_t index) const {
    return data + channel * channel_stride + index * stride;
  }
};

template <class T>
Strided<T> sample_of(const Image& image, int64_t sample) {
  return {static_cast<T*>(image.data) + sample * image.batch_stride, image.channel_stride,
          image.pixel_stride};
}

// The first `count` lanes are adjacent channels; the others are 0.
template <class V, class T>
V gather(const Strided<T>& from, int64_t channel, int64_t index, int count) {
  if (count == lanes<V> && from.channel_stride == 1) return load<V>(from.at(channel, index));
  std::remove_const_t<T> buffer[lanes<V>] = {};
  for (int i = 0; i < count; ++i) buffer[i] = *from.at(channel + i, index);
  return load<V>(buffer);
}
template <class V, class T>
void scatter(const Strided<T>& to, int64_t channel, int64_t index, int count, V v) {
  T buffer[lanes<V>];
  store(buffer, v);
  for (int i = 0; i < count; ++i) *to.at(channel + i, index) = buffer[i];
}

// A stream's state followed by its new inputs.
template <class T>
struct Stream {
  Strided<T> state;
  Strided<const T> x;
  int64_t span, length;

  template <class Body>
  auto at(int64_t index, const Body& body) const {
    return index < span
               ? body(Strided<const T>{state.data, state.channel_stride, state.stride}, index)
               : body(x, index - span);
  }

  // The state becomes the last `span` of both.
  void advance(int64_t channel) const {
    const int64_t kept = std::max<int64_t>(span - length, 0);
    for (int64_t i = 0; i < kept; ++i) *state.at(channel, i) = *state.at(channel, i + length);
    for (int64_t i = kept; i < span; ++i) *state.at(channel, i) = *x.at(channel, i + length - span);
  }
};

// Calls step(sample, stream, channel, count) for groups of up to `width` adjacent channels, the
// stream null where it is not to be touched, then replaces the states.
template <class T, class Step>
void for_each_stream(const CausalConv1dStreams& args, int width, const Step& step) {
  const int64_t groups = (args.channels + width - 1) / width, span = args.span();
  const int64_t work = width * (span + args.length * args.taps) + 1;
  parallel_for(args.batch * groups, 16384 / work + 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t sample = i / groups, channel = i % groups * width;
      const int64_t row = args.row(sample);
      const int count = int(std::min<int64_t>(width, args.channels - channel));
      if (row < 0) {
        step(sample, static_cast<const Stream<T>*>(nullptr), channel, count);
        continue;
      }
      const Strided<T> x = sample_of<T>(args.x, sample);
      const Stream<T> stream{
          sample_of<T>(args.state, row), {x.data, x.channel_stride, x.stride}, span, args.length};
      step(sample, &stream, channel, count);
      for (int c = 0; c < count; ++c) stream.advance(channel + c);
    }
  });
}

}  // namespace
}  // namespace GMFAST_LEVEL

GMFAST_DEFINE_CPU_KERNEL(causal_conv1d_update, CausalConv1dUpdate) {
  with_type(args.streams.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    using V = Native<Compute<T>>;
    const int64_t taps = args.streams.taps, dilation = args.streams.dilation;
    const Strided<const T> weight{static_cast<const T*>(args.weight), taps, 1};
    const Strided<const T> bias{static_cast<const T*>(args.bias), 1, 0};
    for_each_stream<T>(args.streams, lanes<V>,
                       [&](int64_t sample, const Stream<T>* stream, int64_t channel, int count) {
                         const Strided<T> y = sample_of<T>(args.y, sample);
                         for (int64_t t = 0; t < args.streams.length; ++t) {
                           V z = splat<V>(0);
                           if (stream) {
                             if (bias.data) z = gather<V>(bias, channel, 0, count);
                             for (int64_t j = 0; j < taps; ++j) {
                               const V in = stream->at(
                                   t + j * dilation, [&](const auto& from, int64_t index) {
                                     return gather<V>(from, channel, index, count);
                                   });
                               z = fma(gather<V>(weight, channel, j, count), in, z);
                             }
                             if (args.silu) z = silu(z);
                           }
                           scatter(y, channel, t, count, z);
                         }
                       });
  });
}

GMFAST_DEFINE_CPU_KERNEL(causal_conv1d_window, CausalConv1dWindow) {
  with_type(args.streams.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const CausalConv1dStreams& streams = args.streams;
    constexpr int width = 16;
    for_each_stream<T>(
        streams, width, [&](int64_t sample, const Stream<T>* stream, int64_t channel, int count) {
          for (int64_t t = 0; t < streams.length; ++t) {
            T* to = static_cast<T*>(args.window) +
                    ((sample * streams.length + t) * streams.channels + channel) * streams.taps;
            if (!stream) {
              std::fill_n(to, count * streams.taps, T{});
              continue;
            }
            for (int64_t j = 0; j < streams.taps; ++j) {
              stream->at(t + j * streams.dilation, [&](const auto& from, int64_t index) {
                for (int c = 0; c < count; ++c)
                  to[c * streams.taps + j] = *from.at(channel + c, index);
              });
            }
          }
        });
  });
}

}  // namespace gmfast
