// A block brings the inputs of some time steps of a few channels into shared memory, in the compute
// type, and computes from there. Bound by memory where a tap or two more are: with 4 taps and
// float32 an output moves 8 bytes of memory and 24 of shared memory, of which a multiprocessor has
// 7 times the bandwidth; about 25 instructions, of 57 that it issues meanwhile.
#include "../args/causal_conv1d.h"
#include "../math/causal_conv1d.h"
#include "launch.h"
#include "types.h"

namespace gmfast {
namespace {

constexpr int conv_threads = 256;
// A tile of that many numbers, and what its taps reach beyond.
constexpr int64_t tile_numbers = 2048;
// Taps that stay in registers; of more, each use reads the weight again.
constexpr int few_taps = 4;

// Channels that a block has side by side: a power of two, so that a thread keeps to one of them.
// Whole sectors of memory where channels adjoin; enough work where sequences are short.
int tile_width(const CausalConv1d& args) {
  const int64_t steps = std::min(args.steps(), std::max<int64_t>(args.length, 1));
  int width = 1;
  while (width < warp_size && 2 * width * steps <= tile_numbers) width *= 2;
  return width;
}

// What a block computes, and of it a thread: every `rows`-th time step of one channel.
struct Place {
  int64_t sample, channel, piece, begin, end;
  int width, lane, row, rows;
  bool inside;  // there is such a channel

  GMFAST_DEVICE Place(const CausalConv1d& args, int width)
      : width(width),
        lane(thread_index() % width),
        row(thread_index() / width),
        rows(conv_threads / width) {
    const int64_t pieces = args.pieces(), strips = (args.channels + width - 1) / width;
    int64_t index = block_index();
    if (args.channels_inner) {  // neighbours in memory follow each other
      channel = index % strips * width + lane;
      piece = index / strips % pieces;
    } else {
      piece = index % pieces;
      channel = index / pieces % strips * width + lane;
    }
    sample = index / (strips * pieces);
    inside = channel < args.channels;
    begin = piece * args.steps();
    end = begin + args.steps() < args.length ? begin + args.steps() : args.length;
  }
};

int64_t blocks_of(const CausalConv1d& args, int width) {
  return args.batch * ceil_div(args.channels, width) * args.pieces();
}

// A channel of a sample.
template <class T>
GMFAST_DEVICE T* line(const Image& image, const Place& place) {
  return static_cast<T*>(image.data) + place.sample * image.batch_stride +
         place.channel * image.channel_stride;
}

// A thread's inputs at times [begin, end) into its column of the tile, begin >= -span and end <=
// length.
template <class T, class S>
GMFAST_DEVICE void load_inputs(const CausalConv1d& args, const Place& place, int64_t begin,
                               int64_t end, S* tile) {
  if (!place.inside) return;
  S* const column = tile + place.lane;
  const int64_t start = begin > 0 ? begin : end < 0 ? end : 0;
  const T* state = args.initial_state.data ? line<T>(args.initial_state, place) : nullptr;
  for (int64_t time = begin + place.row; time < start; time += place.rows) {
    column[(time - begin) * place.width] =
        state ? load<S>(state + (time + args.span()) * args.initial_state.pixel_stride) : S(0);
  }
  const T* x = line<T>(args.x, place);
  GMFAST_UNROLL_BY(8)
  for (int64_t time = start + place.row; time < end; time += place.rows) {
    column[(time - begin) * place.width] = load<S>(x + time * args.x.pixel_stride);
  }
}

// The taps of a thread's channel; K > 0: at most K, in registers. `packed`: see
// CausalConv1d::packed().
template <class T, class S, int K, bool packed>
struct Filter {
  const CausalConv1d& args;
  int64_t sample, first;
  int taps;
  S bias, kept[K > 0 ? K : 1];

  GMFAST_DEVICE Filter(const CausalConv1d& args, const Place& place)
      : args(args),
        sample(place.sample),
        first(place.channel * args.taps),
        taps(place.inside ? int(args.taps) : 0),
        bias(place.inside && args.bias.data ? load_weight<T>(args.bias, place.channel) : S(0)) {
    GMFAST_UNROLL
    for (int j = 0; j < K; ++j) kept[j] = j < taps ? load_weight<T>(args.weight, first + j) : S(0);
  }

  // The sequence of an input; that of all of them where sequences are not packed.
  GMFAST_DEVICE int64_t sequence(int64_t time) const {
    return packed ? args.sequence(sample, time) : 0;
  }
  // Whether tap j of the output at `time`, in sequence `own`, sees its input.
  GMFAST_DEVICE bool sees(int j, int64_t time, int64_t own) const {
    return !packed || sequence(time - (args.taps - 1 - j) * args.dilation) == own;
  }

  // Calls body(j, tap j) in order.
  template <class Body>
  GMFAST_DEVICE void for_each(const Body& body) const {
    if constexpr (K > 0) {
      GMFAST_UNROLL
      for (int j = 0; j < K; ++j) {
        if (j < taps) body(j, kept[j]);
      }
    } else {
      for (int j = 0; j < taps; ++j) body(j, load_weight<T>(args.weight, first + j));
    }
  }

  // Before the activation, from the first tap's input on; the output is of sequence `own`.
  GMFAST_DEVICE S linear(const S* from, int distance, int64_t time, int64_t own) const {
    if (packed && own < 0) return S(0);
    S z = bias;
    for_each([&](int j, S tap) {
      if (sees(j, time, own)) z = fma(tap, from[j * distance], z);
    });
    return z;
  }
};

template <class T, int K, bool packed>
__global__ void __launch_bounds__(conv_threads, 3) forward_kernel(CausalConv1d args, int width) {
  using S = Compute<T>;
  const Place place(args, width);
  S* const tile = dynamic_shared<S>();
  load_inputs<T>(args, place, place.begin - args.span(), place.end, tile);
  const Filter<T, S, K, packed> filter(args, place);
  __syncthreads();
  if (!place.inside) return;

  const int distance = int(args.dilation) * width;
  T* const y = line<T>(args.y, place);
  GMFAST_UNROLL_BY(4)
  for (int64_t time = place.begin + place.row; time < place.end; time += place.rows) {
    const S z = filter.linear(tile + (time - place.begin) * width + place.lane, distance, time,
                              filter.sequence(time));
    store(y + time * args.y.pixel_stride, args.silu ? silu(z) : z);
  }
}

// For each channel of the block the sums of `count` numbers over its threads, always in the same
// order: write(i, sum) is called by the first `width` threads. All threads must call.
template <int count, class S, class Write>
GMFAST_DEVICE void sum_over_rows(const Place& place, S (&values)[count], const Write& write) {
  constexpr int warps = conv_threads / warp_size;
  __shared__ S partial[count][warps][warp_size];
  const int warp = thread_index() / warp_size;
  __syncthreads();  // whoever still reads earlier sums
  GMFAST_UNROLL
  for (int i = 0; i < count; ++i) {
    for (int distance = warp_size / 2; distance >= place.width; distance /= 2) {
      values[i] += __shfl_xor_sync(0xffffffffu, values[i], distance);
    }
    if (thread_index() % warp_size < place.width) partial[i][warp][place.lane] = values[i];
  }
  __syncthreads();
  if (thread_index() >= place.width) return;
  GMFAST_UNROLL
  for (int i = 0; i < count; ++i) {
    S sum = 0;
    GMFAST_UNROLL
    for (int w = 0; w < warps; ++w) sum += partial[i][w][place.lane];
    write(i, sum);
  }
}

template <class T, int K, bool packed>
__global__ void __launch_bounds__(conv_threads, packed ? 2 : 1)
    backward_kernel(CausalConv1dBackward backward, int width) {
  using S = Compute<T>;
  const CausalConv1d& args = backward.forward;
  const Place place(args, width);
  const int64_t span = args.span(), steps = place.end - place.begin;
  const int64_t last = place.end + span < args.length ? place.end + span : args.length;
  // Both from time begin - span to end + span.
  S* const x = dynamic_shared<S>();
  S* const g = x + (steps + 2 * span) * width;
  load_inputs<T>(args, place, place.begin - span, last, x);
  const Filter<T, S, K, packed> filter(args, place);
  __syncthreads();

  // The gradient by the convolution's value: zero before, where no output is this block's concern,
  // and after the end, where there is none.
  const int distance = int(args.dilation) * width;
  constexpr int sums_at_once = K > 0 ? K + 1 : 1;
  S sums[sums_at_once] = {};
  if (place.inside) {
    const T* const grad_y = line<T>(args.y, place);
    for (int64_t time = place.row; time < span; time += place.rows) {
      g[time * width + place.lane] = S(0);
    }
    GMFAST_UNROLL_BY(4)
    for (int64_t time = place.begin + place.row; time < place.end + span; time += place.rows) {
      const int64_t at = (time - place.begin) * width + place.lane;
      S grad = 0;
      const int64_t own = filter.sequence(time);
      if (time < last && own >= 0) {
        grad = load<S>(grad_y + time * args.y.pixel_stride);
        if (args.silu) grad *= silu_derivative(filter.linear(x + at, distance, time, own));
        if (K > 0 && time < place.end) {
          GMFAST_UNROLL
          for (int j = 0; j < K; ++j) {
            if (j < filter.taps && filter.sees(j, time, own)) {
              sums[j] = fma(grad, x[at + j * distance], sums[j]);
            }
          }
          sums[sums_at_once - 1] += grad;
        }
      }
      g[at + span * width] = grad;
    }
  }
  __syncthreads();

  if (place.inside) {
    const auto by_input = [&](int64_t time) {
      const S* from = g + (time - place.begin + 2 * span) * width + place.lane;
      const int64_t own = filter.sequence(time);
      S sum = 0;
      filter.for_each([&](int j, S tap) {
        const int64_t output = time + span - j * args.dilation;
        if (!packed || filter.sequence(output) == own) sum = fma(tap, from[-j * distance], sum);
      });
      return sum;
    };
    if (backward.grad_state.data && place.begin == 0) {
      T* const grad_state = line<T>(backward.grad_state, place);
      for (int64_t time = place.row - span; time < 0; time += place.rows) {
        store(grad_state + (time + span) * backward.grad_state.pixel_stride, by_input(time));
      }
    }
    if (backward.grad_x.data) {
      T* const grad_x = line<T>(backward.grad_x, place);
      GMFAST_UNROLL_BY(4)
      for (int64_t time = place.begin + place.row; time < place.end; time += place.rows) {
        store(grad_x + time * backward.grad_x.pixel_stride, by_input(time));
      }
    }
  }
  if (!backward.partial_sums) return;
  const auto write = [&](int64_t j, S sum) {
    if (!place.inside) return;
    const int64_t column = place.sample * args.pieces() + place.piece;
    S* const row = static_cast<S*>(backward.partial_sums) +
                   (place.channel * (args.taps + 1) + j) * backward.columns();
    row[column] = sum;
  };
  if constexpr (K > 0) {
    sum_over_rows(place, sums, [&](int i, S sum) {
      if (i == K) {
        write(args.taps, sum);
      } else if (i < filter.taps) {
        write(i, sum);
      }
    });
  } else {
    for (int j = 0; j <= args.taps; ++j) {
      S sum[1] = {};
      if (place.inside) {
        for (int64_t time = place.row; time < steps; time += place.rows) {
          const int64_t at = time * width + place.lane;
          const int64_t output = place.begin + time;
          if (packed && j < args.taps && !filter.sees(j, output, filter.sequence(output))) continue;
          const S by = j < args.taps ? x[at + j * distance] : S(1);
          sum[0] = fma(g[at + span * width], by, sum[0]);
        }
      }
      sum_over_rows(place, sum, [&](int, S total) { write(j, total); });
    }
  }
}

// Block c·(taps + 1) + j sums row number c·(taps + 1) + j of the partial sums, over the blocks of a
// channel: its gradient by tap j, or behind the last by the bias.
constexpr int total_threads = 64;

template <class T>
__global__ void __launch_bounds__(total_threads) total_kernel(CausalConv1dBackward backward) {
  using S = Compute<T>;
  const int64_t taps = backward.forward.taps, columns = backward.columns();
  const int64_t channel = block_index() / (taps + 1), j = block_index() % (taps + 1);
  const S* const row = static_cast<const S*>(backward.partial_sums) + block_index() * columns;
  double sum = 0;
  for (int64_t i = thread_index(); i < columns; i += total_threads) sum += row[i];
  sum = block_sum<total_threads>(sum);
  const Weights& total = j < taps ? backward.grad_weight : backward.grad_bias;
  if (total.data && thread_index() == 0) {
    store_weight<T>(total, j < taps ? channel * taps + j : channel, S(sum));
  }
}

// Calls body(type, K, packed) for the arguments' dtype and taps, and whether sequences are packed.
template <class Body>
void with_kernel(const CausalConv1d& args, const Body& body) {
  with_type<double>(args.dtype, [&](auto* type) {
    const auto of_taps = [&](auto packed) {
      if (args.taps <= few_taps) {
        body(type, std::integral_constant<int, few_taps>{}, packed);
      } else {
        body(type, std::integral_constant<int, 0>{}, packed);
      }
    };
    args.packed() ? of_taps(std::true_type{}) : of_taps(std::false_type{});
  });
}

}  // namespace

void causal_conv1d_cuda(const CausalConv1d& args, void* stream) {
  const int width = tile_width(args);
  const int64_t times = std::min(args.steps(), args.length) + args.span();
  with_kernel(args, [&](auto* type, auto K, auto packed) {
    using T = std::remove_pointer_t<decltype(type)>;
    launch(forward_kernel<T, decltype(K)::value, decltype(packed)::value>, blocks_of(args, width),
           conv_threads, times * width * sizeof(Compute<T>), stream, args, width);
  });
}

void causal_conv1d_backward_cuda(const CausalConv1dBackward& args, void* stream) {
  const int width = tile_width(args.forward);
  const int64_t times =
      std::min(args.forward.steps(), args.forward.length) + 2 * args.forward.span();
  with_kernel(args.forward, [&](auto* type, auto K, auto packed) {
    using T = std::remove_pointer_t<decltype(type)>;
    launch(backward_kernel<T, decltype(K)::value, decltype(packed)::value>,
           blocks_of(args.forward, width), conv_threads, 2 * times * width * sizeof(Compute<T>),
           stream, args, width);
    if (args.partial_sums) launch(total_kernel<T>, args.rows(), total_threads, 0, stream, args);
  });
}

}  // namespace gmfast
