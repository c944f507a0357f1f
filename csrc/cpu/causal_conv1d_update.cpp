// A step moves few numbers, strided as they come: what counts is that there is no copy and no
// second pass.
#include "../args/causal_conv1d_update.h"

#include <algorithm>

#include "../common/parallel.h"
#include "../math/causal_conv1d.h"
#include "tile.h"

namespace gmfast {
inline namespace GMFAST_LEVEL {
namespace {

// The numbers of a sample's channels, of any strides.
template <class T>
struct Sample {
  T* data;
  int64_t channel_stride, stride;

  Sample(const Image& image, int64_t number)
      : data(static_cast<T*>(image.data) + number * image.batch_stride),
        channel_stride(image.channel_stride),
        stride(image.pixel_stride) {}

  T* at(int64_t channel, int64_t index) const {
    return data + channel * channel_stride + index * stride;
  }
};

// One channel of a stream: its state, which shifts or is circular, followed by its new inputs.
template <class T, bool circular>
struct Line {
  T* state;
  const T* x;
  int64_t state_stride, x_stride, entries, oldest, span, length;

  T& entry(int64_t age) const {
    return state[(circular ? circular_entry(oldest, age, entries) : age) * state_stride];
  }

  // By number from the first input that the taps reach on.
  const T* at(int64_t index) const {
    return index < span ? &entry(entries - span + index) : x + (index - span) * x_stride;
  }

  // The state becomes the last `entries` of both.
  void advance() const {
    const int64_t kept = entries > length ? entries - length : 0;
    if constexpr (circular) {
      for (int64_t time = length + kept - entries; time < length; ++time) {
        entry(time % entries) = x[time * x_stride];
      }
    } else {
      for (int64_t i = 0; i < kept; ++i) entry(i) = entry(i + length);
      for (int64_t i = kept; i < entries; ++i) entry(i) = x[(i + length - entries) * x_stride];
    }
  }
};

template <class T, bool circular>
struct Stream {
  Sample<T> state, x;
  int64_t entries, oldest, span, length;

  Line<T, circular> channel(int64_t index) const {
    return {
        state.at(index, 0), x.at(index, 0), state.stride, x.stride, entries, oldest, span, length};
  }
};

// Calls step(sample, stream, channel, count) for groups of up to `width` adjacent channels, the
// stream null where it is not to be touched, then replaces the states.
template <class T, bool circular, class Step>
void for_each_stream(const CausalConv1dStreams& args, int width, const Step& step) {
  const int64_t groups = (args.channels + width - 1) / width;
  const int64_t moved = circular ? args.length : args.entries, span = args.span();
  const int64_t work = width * (moved + args.length * args.taps) + 1;
  parallel_for(args.batch * groups, 16384 / work + 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t sample = i / groups, channel = i % groups * width;
      const int64_t row = args.row(sample);
      const int count = int(std::min<int64_t>(width, args.channels - channel));
      if (row < 0) {
        step(sample, static_cast<const Stream<T, circular>*>(nullptr), channel, count);
        continue;
      }
      const Stream<T, circular> stream{
          {args.state, row}, {args.x, sample}, args.entries, args.oldest(sample), span,
          args.length};
      step(sample, &stream, channel, count);
      for (int c = 0; c < count; ++c) stream.channel(channel + c).advance();
    }
  });
}

template <class T, class Step>
void for_each_stream(const CausalConv1dStreams& args, int width, const Step& step) {
  args.seen.data ? for_each_stream<T, true>(args, width, step)
                 : for_each_stream<T, false>(args, width, step);
}

}  // namespace
}  // namespace GMFAST_LEVEL

GMFAST_DEFINE_CPU_KERNEL(causal_conv1d_update, CausalConv1dUpdate) {
  with_type(args.streams.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    using S = Compute<T>;
    using V = Native<S>;
    const int64_t taps = args.streams.taps, dilation = args.streams.dilation;
    for_each_stream<T>(args.streams, lanes<V>,
                       [&](int64_t sample, const auto* stream, int64_t first, int count) {
                         const Sample<T> y(args.y, sample);
                         for (int64_t t = 0; t < args.streams.length; ++t) {
                           // A channel's taps and inputs adjoin, so that only the activation is
                           // worth a vector.
                           S sums[lanes<V>] = {};
                           for (int i = 0; stream && i < count; ++i) {
                             const int64_t channel = first + i;
                             const auto line = stream->channel(channel);
                             S sum = args.bias.data ? load_weight<T>(args.bias, channel) : S(0);
                             for (int64_t j = 0; j < taps; ++j) {
                               sum = fma(load_weight<T>(args.weight, channel * taps + j),
                                         load<S>(line.at(t + j * dilation)), sum);
                             }
                             sums[i] = sum;
                           }
                           if (args.silu) store(sums, silu(load<V>(sums)));
                           for (int i = 0; i < count; ++i) store(y.at(first + i, t), sums[i]);
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
        streams, width, [&](int64_t sample, const auto* stream, int64_t first, int count) {
          for (int64_t t = 0; t < streams.length; ++t) {
            T* to = static_cast<T*>(args.window) +
                    ((sample * streams.length + t) * streams.channels + first) * streams.taps;
            for (int i = 0; i < count; ++i) {
              for (int64_t j = 0; j < streams.taps; ++j) {
                *to++ = stream ? *stream->channel(first + i).at(t + j * streams.dilation) : T{};
              }
            }
          }
        });
  });
}

}  // namespace gmfast
