// A thread, or where a state is long a warp, to each channel of each stream: few numbers, moved
// once.
#include "../args/causal_conv1d_update.h"
#include "../math/causal_conv1d.h"
#include "launch.h"
#include "types.h"

namespace gmfast {
namespace {

constexpr int stream_threads = 128;
constexpr int64_t longest_of_one_thread = 16;
// Numbers of the state that a thread holds while their places are written.
constexpr int held = 4;

int group_of(const CausalConv1dStreams& args) {
  const int64_t moved = args.seen.data ? args.length : args.entries;
  return moved <= longest_of_one_thread ? 1 : warp_size;
}

// A channel's state followed by its new inputs.
template <class T>
struct Stream {
  const CausalConv1dStreams& args;
  int64_t sample, channel;
  const T* x;
  T* state = nullptr;  // null where it is not to be touched
  int64_t oldest = 0;
  bool inside;

  GMFAST_DEVICE Stream(const CausalConv1dStreams& args, int64_t index)
      : args(args),
        sample(index / args.channels),
        channel(index % args.channels),
        inside(index < args.batch * args.channels) {
    const int64_t row = inside ? args.row(sample) : -1;
    if (row < 0 || row >= args.rows) return;
    x = static_cast<const T*>(args.x.data) + sample * args.x.batch_stride +
        channel * args.x.channel_stride;
    state = static_cast<T*>(args.state.data) + row * args.state.batch_stride +
            channel * args.state.channel_stride;
    oldest = args.oldest(sample);
  }

  GMFAST_DEVICE T& entry(int64_t age) const {
    return state[circular_entry(oldest, age, args.entries) * args.state.pixel_stride];
  }
  // The input that came `age` after the state's oldest.
  GMFAST_DEVICE T at(int64_t age) const {
    return age < args.entries ? entry(age) : x[(age - args.entries) * args.x.pixel_stride];
  }
  // What tap j of the output at a new time step sees.
  GMFAST_DEVICE T input(int64_t time, int64_t j) const {
    return at(args.entries - args.span() + time + j * args.dilation);
  }
};

// Calls output(stream, time) for the outputs of all streams, then makes the states their last
// inputs. `group` threads share a channel. A state that shifts is rewritten as a whole, of a
// circular one the new inputs' entries alone.
template <class T, class Output>
GMFAST_DEVICE void advance(const CausalConv1dStreams& args, int group, const Output& output) {
  const int lane = thread_index() % group;
  const Stream<T> stream(args, (block_index() * stream_threads + thread_index()) / group);
  if (stream.inside) {
    for (int64_t time = lane; time < args.length; time += group) output(stream, time);
  }
  if (args.seen.data) {
    __syncthreads();  // all has been read that is overwritten now
    const int64_t begin = args.length > args.entries ? args.length - args.entries : 0;
    for (int64_t time = begin + lane; stream.state && time < args.length; time += group) {
      stream.entry(time % args.entries) = stream.at(args.entries + time);
    }
    return;
  }
  for (int64_t first = lane; first - lane < args.entries; first += held * group) {
    T kept[held];
    GMFAST_UNROLL
    for (int i = 0; i < held; ++i) {
      const int64_t index = first + i * group;
      if (stream.state && index < args.entries) kept[i] = stream.at(index + args.length);
    }
    __syncthreads();  // as above
    GMFAST_UNROLL
    for (int i = 0; i < held; ++i) {
      const int64_t index = first + i * group;
      if (stream.state && index < args.entries) stream.entry(index) = kept[i];
    }
  }
}

template <class T>
__global__ void __launch_bounds__(stream_threads, 6)
    update_kernel(CausalConv1dUpdate args, int group) {
  using S = Compute<T>;
  advance<T>(args.streams, group, [&](const Stream<T>& stream, int64_t time) {
    S z = 0;
    if (stream.state) {
      const int64_t taps = args.streams.taps;
      if (args.bias.data) z = load_weight<T>(args.bias, stream.channel);
      GMFAST_UNROLL_BY(4)
      for (int64_t j = 0; j < taps; ++j) {
        const T in = stream.input(time, j);
        z = fma(load_weight<T>(args.weight, stream.channel * taps + j), load<S>(&in), z);
      }
      if (args.silu) z = silu(z);
    }
    store(static_cast<T*>(args.y.data) + stream.sample * args.y.batch_stride +
              stream.channel * args.y.channel_stride + time * args.y.pixel_stride,
          z);
  });
}

template <class T>
__global__ void __launch_bounds__(stream_threads, 6)
    window_kernel(CausalConv1dWindow args, int group) {
  advance<T>(args.streams, group, [&](const Stream<T>& stream, int64_t time) {
    const int64_t taps = args.streams.taps;
    T* const to =
        static_cast<T*>(args.window) +
        ((stream.sample * args.streams.length + time) * args.streams.channels + stream.channel) *
            taps;
    for (int64_t j = 0; j < taps; ++j) {
      to[j] = stream.state ? stream.input(time, j) : T{};
    }
  });
}

template <class Args, class Kernel>
void launch_streams(const CausalConv1dStreams& streams, const Args& args, const Kernel& kernel,
                    void* stream) {
  const int group = group_of(streams);
  const int64_t blocks = ceil_div(streams.batch * streams.channels * group, stream_threads);
  with_type<double>(streams.dtype, [&](auto* type) {
    launch(kernel(type), blocks, stream_threads, 0, stream, args, group);
  });
}

}  // namespace

void causal_conv1d_update_cuda(const CausalConv1dUpdate& args, void* stream) {
  launch_streams(
      args.streams, args,
      [](auto* type) { return update_kernel<std::remove_pointer_t<decltype(type)>>; }, stream);
}

void causal_conv1d_window_cuda(const CausalConv1dWindow& args, void* stream) {
  launch_streams(
      args.streams, args,
      [](auto* type) { return window_kernel<std::remove_pointer_t<decltype(type)>>; }, stream);
}

}  // namespace gmfast
