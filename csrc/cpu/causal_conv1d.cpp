// A thread copies the inputs of a job into a tile in the compute type, and computes from there. A
// tile's elements lie as in memory, one channel's time steps or each time step's channels, so an
// earlier time is a fixed distance away, and the vectors along either way are treated alike.
#include "../args/causal_conv1d.h"

#include "../math/causal_conv1d.h"
#include "reduce.h"
#include "scratch.h"
#include "tile.h"
#include "vectors.h"

namespace gmfast {
inline namespace GMFAST_LEVEL {
namespace {

// The most channels that a job has side by side.
template <class V>
constexpr int64_t widest = 8 * lanes<V>;

template <class V>
int64_t whole_vectors(int64_t count) {
  return (count + lanes<V> - 1) / lanes<V> * lanes<V>;
}

// One channel's taps and bias, or those of adjacent channels: neighbours in memory.
template <class S>
struct Filter {
  const S* tap;
  int64_t taps, pitch;  // from one tap to the next, and from the last to the bias
};

// Taps and bias in the compute type, the channels adjacent, zeros up to whole vectors.
template <class T>
class Coefficients {
  using S = Compute<T>;

 public:
  explicit Coefficients(const CausalConv1d& args)
      : taps_(args.taps),
        pitch_(whole_vectors<Native<S>>(args.channels)),
        data_((args.taps + 1) * pitch_) {
    S* const table = data_.get();
    std::fill_n(table, (taps_ + 1) * pitch_, S(0));
    for (int64_t c = 0; c < args.channels; ++c) {
      for (int64_t j = 0; j < taps_; ++j) {
        table[j * pitch_ + c] = load_weight<T>(args.weight, c * taps_ + j);
      }
      if (args.bias.data) table[taps_ * pitch_ + c] = load_weight<T>(args.bias, c);
    }
  }

  Filter<S> from(int64_t channel) { return {data_.get() + channel, taps_, pitch_}; }

 private:
  int64_t taps_, pitch_;
  Scratch<S> data_;
};

// Time steps [begin, end) of `width` channels of a sample.
struct Job {
  int64_t sample, channel, width, piece, begin, end;
};

// What a job sees of a tensor or a tile; channels count from the job's first.
template <class E>
struct View {
  E* data;
  int64_t origin, time_stride;  // the time of the first element

  E* at(int64_t time, int64_t channel) const {
    return data + (time - origin) * time_stride + channel;
  }
};

// Which taps the outputs of packed sequences see, as 1 or 0: those in their own sequence, and of
// padding none. The last tap, at the output's own time, tells padding.
template <class S>
class Seen {
 public:
  // For jobs of up to `steps` time steps.
  Seen(const CausalConv1d& args, int64_t steps)
      : args_(args),
        span_(args.span()),
        pitch_(steps + 2 * span_ + lanes<Native<S>>),
        table_(args.taps * pitch_),
        sequences_(pitch_) {}

  // Times [job.begin - span, job.end + span), of which those before the job see nothing.
  void prepare(const Job& job) {
    if (sample_ == job.sample && origin_ == job.begin - span_) return;
    sample_ = job.sample;
    origin_ = job.begin - span_;
    const int64_t times = job.end + span_ - origin_;
    int64_t* const sequence = sequences_.get();
    for (int64_t i = 0; i < times; ++i) sequence[i] = args_.sequence(sample_, origin_ + i);
    for (int64_t j = 0; j < args_.taps; ++j) {
      const int64_t back = span_ - j * args_.dilation;
      S* const row = table_.get() + j * pitch_;
      std::fill_n(row, span_, S(0));
      for (int64_t i = span_; i < times; ++i) {
        row[i] = S(sequence[i] >= 0 && sequence[i] == sequence[i - back]);
      }
      std::fill(row + times, row + pitch_, S(0));
    }
  }

  const S* at(int64_t tap, int64_t time) const {
    return table_.get() + tap * pitch_ + time - origin_;
  }
  int64_t pitch() const { return pitch_; }

 private:
  const CausalConv1d& args_;
  int64_t span_, pitch_, sample_ = -1, origin_ = 0;
  Scratch<S> table_;
  Scratch<int64_t> sequences_;
};

template <int count>
using Vectors = std::integral_constant<int, count>;

// Calls body(i, Vectors<4 or 1>, span) for groups of vectors that cover [0, count).
template <class V, class Body>
GMFAST_HD void for_each_group(int64_t count, const Body& body) {
  int64_t i = 0;
  for (; i + 4 * lanes<V> <= count; i += 4 * lanes<V>) body(i, Vectors<4>{}, Span<V, true>{});
  for_each_vector<V>(i, count - i, [&](int64_t j, auto span) { body(j, Vectors<1>{}, span); });
}

// `packed`: see CausalConv1d::packed().
template <class T, bool channels_inner, bool packed>
struct Kernel {
  using S = Compute<T>;
  using V = Native<S>;

  const CausalConv1d& args;
  const int64_t span = args.span(), steps = std::min(args.steps(), args.length);
  const int64_t width = channels_inner ? std::min(args.channels, widest<V>) : 1;
  const int64_t pitch = channels_inner ? whole_vectors<V>(width) : 1;  // of tiles
  const int64_t pieces = args.pieces(), strips = (args.channels + width - 1) / width;

  // Numbers in a tile of so many time steps; the last vector may reach beyond them.
  int64_t tile_size(int64_t times) const { return times * pitch + lanes<V>; }

  // Calls body(job) for all jobs of a range that parallel_for hands out.
  template <class Body>
  void for_each_job(int64_t first, int64_t last, const Body& body) const {
    for (int64_t index = first; index < last; ++index) {
      // Neighbours in memory follow each other.
      const int64_t inner = channels_inner ? strips : pieces;
      const int64_t outer = index / inner % (channels_inner ? pieces : strips);
      const int64_t piece = channels_inner ? outer : index % inner;
      const int64_t channel = (channels_inner ? index % inner : outer) * width;
      body(Job{index / (strips * pieces), channel, std::min(width, args.channels - channel), piece,
               piece * steps, std::min((piece + 1) * steps, args.length)});
    }
  }

  template <class Body>
  void run(const Body& body) const {
    parallel_for(args.batch * strips * pieces, 16384 / (steps * width + 1) + 1, body);
  }

  // Calls body(time, channel, Vectors, span) for groups of vectors that cover times [begin, end).
  template <class Body>
  GMFAST_HD void for_each_place(const Job& job, int64_t begin, int64_t end,
                                const Body& body) const {
    if constexpr (channels_inner) {
      for (int64_t time = begin; time < end; ++time) {
        for_each_group<V>(job.width, [&](int64_t channel, auto count, auto part) {
          body(time, channel, count, part);
        });
      }
    } else {
      for_each_group<V>(end - begin,
                        [&](int64_t i, auto count, auto part) { body(begin + i, 0, count, part); });
    }
  }

  View<T> view(const Image& image, const Job& job, int64_t origin = 0) const {
    return {static_cast<T*>(image.data) + job.sample * image.batch_stride +
                job.channel * image.channel_stride,
            origin, channels_inner ? image.pixel_stride : 1};
  }

  void copy(const View<T>& from, const Job& job, int64_t begin, int64_t end,
            const View<S>& tile) const {
    for_each_place(job, begin, end, [&](int64_t time, int64_t channel, auto count, auto part) {
      for (int u = 0; u < count; ++u) {
        store(tile.at(time, channel) + u * lanes<V>,
              part.load(from.at(time, channel) + u * lanes<V>));
      }
    });
  }

  // The inputs at times [begin, end) in a tile, begin >= -span and end <= length.
  View<S> inputs(const Job& job, int64_t begin, int64_t end, S* scratch) const {
    const View<S> tile{scratch, begin, pitch};
    const int64_t start = std::max<int64_t>(begin, std::min<int64_t>(end, 0));
    if (args.initial_state.data) {
      copy(view(args.initial_state, job, -span), job, begin, start, tile);
    } else {
      std::fill(tile.at(begin, 0), tile.at(start, 0), S(0));
    }
    copy(view(args.x, job), job, start, end, tile);
    return tile;
  }

  // `value` where an output, or along time each of a vector of them, sees a tap; else `other`.
  static GMFAST_HD V where(const S* seen, V value, V other) {
    if constexpr (!packed) return value;
    if constexpr (channels_inner) return *seen != 0 ? value : other;
    return select<V>(load<V>(seen) != splat<V>(0), value, other);
  }

  // sums[u] += Σ_j tap j · what lies j times `distance` elements further, where tap j is seen: what
  // says so lies j times `seen_distance` further.
  template <int count>
  static GMFAST_HD void convolve(V (&sums)[count], const S* from, int64_t distance,
                                 const Filter<S>& filter, int64_t channel, const S* seen,
                                 int64_t seen_distance) {
    const S* tap = filter.tap + channel;
    for (int64_t j = 0; j < filter.taps; ++j, from += distance, tap += filter.pitch) {
      for (int u = 0; u < count; ++u) {
        const V w = channels_inner ? load<V>(tap + u * lanes<V>) : splat<V>(*tap);
        const V sum = fma(w, load<V>(from + u * lanes<V>), sums[u]);
        sums[u] = where(seen_by(seen, u), sum, sums[u]);
      }
      if constexpr (packed) seen += seen_distance;
    }
  }

  // Of the vector number u of a group.
  static GMFAST_HD const S* seen_by(const S* seen, int u) {
    return packed && !channels_inner ? seen + u * lanes<V> : seen;
  }

  // Before the activation: bias + Σ_j tap j · input, from the first tap's input on; 0 for padding.
  template <int count>
  static GMFAST_HD void linear(V (&z)[count], const S* from, int64_t distance,
                               const Filter<S>& filter, int64_t channel, const Seen<S>* seen,
                               int64_t time) {
    const S* bias = filter.tap + filter.taps * filter.pitch + channel;
    const S* first = packed ? seen->at(0, time) : nullptr;
    const S* last = packed ? seen->at(filter.taps - 1, time) : nullptr;
    for (int u = 0; u < count; ++u) {
      const V b = channels_inner ? load<V>(bias + u * lanes<V>) : splat<V>(*bias);
      z[u] = where(seen_by(last, u), b, splat<V>(0));
    }
    convolve(z, from, distance, filter, channel, first, packed ? seen->pitch() : 0);
  }

  // What a range of jobs shares, nothing where sequences are not packed.
  auto seen_taps() const {
    if constexpr (packed) {
      return Seen<S>(args, steps);
    } else {
      return nullptr;
    }
  }
  static const Seen<S>* prepared(std::nullptr_t, const Job&) { return nullptr; }
  static const Seen<S>* prepared(Seen<S>& seen, const Job& job) {
    seen.prepare(job);
    return &seen;
  }

  void forward() const {
    run([&](int64_t first, int64_t last) {
      Coefficients<T> coefficients(args);
      Scratch<S> scratch(tile_size(span + steps));
      auto seen_by_range = seen_taps();
      for_each_job(first, last, [&](const Job& job) {
        const Seen<S>* const seen = prepared(seen_by_range, job);
        const bool silu = args.silu;
        const int64_t before = span, distance = args.dilation * pitch;
        const Filter<S> filter = coefficients.from(job.channel);
        const View<S> x = inputs(job, job.begin - span, job.end, scratch.get());
        const View<T> y = view(args.y, job);
        for_each_place(
            job, job.begin, job.end, [&](int64_t time, int64_t channel, auto count, auto part) {
              V z[count];
              linear(z, x.at(time - before, channel), distance, filter, channel, seen, time);
              T* to = y.at(time, channel);
              if (silu) {
                for (int u = 0; u < count; ++u) z[u] = gmfast::silu(z[u]);
              }
              for (int u = 0; u < count; ++u) part.store(to + u * lanes<V>, z[u]);
            });
      });
    });
  }

  // The gradient by the convolution's value, at times [job.begin, end); zeros before, where there
  // is no output, and up to span after.
  View<S> grad_linear(const Job& job, const View<S>& x, const Filter<S>& filter,
                      const Seen<S>* seen, int64_t end, S* scratch) const {
    const bool silu = args.silu;
    const int64_t before = span, distance = args.dilation * pitch;
    const View<S> g{scratch, job.begin - span, pitch};
    const View<T> grad_y = view(args.y, job);
    std::fill(g.at(job.begin - span, 0), g.at(job.begin, 0), S(0));
    for_each_place(job, job.begin, end, [&](int64_t time, int64_t channel, auto count, auto part) {
      V by[count];
      if (silu) {
        linear(by, x.at(time - before, channel), distance, filter, channel, seen, time);
        for (int u = 0; u < count; ++u) by[u] = silu_derivative(by[u]);
      } else {
        for (int u = 0; u < count; ++u) by[u] = splat<V>(1);
      }
      const S* const own = packed ? seen->at(filter.taps - 1, time) : nullptr;
      for (int u = 0; u < count; ++u) {
        const V grad = by[u] * part.load(grad_y.at(time, channel) + u * lanes<V>);
        store(g.at(time, channel) + u * lanes<V>, where(seen_by(own, u), grad, splat<V>(0)));
      }
    });
    std::fill(g.at(end, 0), g.at(job.end + span, 0), S(0));
    return g;
  }

  // Calls body(channel, sum) for the sums over the job's times of g, or where there is x of g times
  // the input that tap number `tap` sees.
  template <class Body>
  void sums_over_time(const Job& job, const View<S>& g, const View<S>* x, int64_t tap,
                      const Seen<S>* seen, const Body& body) const {
    const int64_t back = span - tap * args.dilation;
    const auto add = [&](int64_t time, int64_t channel, auto count, auto part, V* sums) {
      const S* const at = packed && x ? seen->at(tap, time) : nullptr;
      for (int u = 0; u < count; ++u) {
        const V grad = part.load(g.at(time, channel) + u * lanes<V>);
        const V by = x ? part.load(x->at(time - back, channel) + u * lanes<V>) : splat<V>(1);
        const V sum = fma(grad, by, sums[u]);
        sums[u] = x ? where(seen_by(at, u), sum, sums[u]) : sum;
      }
    };
    if constexpr (channels_inner) {
      for_each_group<V>(job.width, [&](int64_t channel, auto count, auto part) {
        V sums[count] = {};
        for (int64_t time = job.begin; time < job.end; ++time) {
          add(time, channel, count, part, sums);
        }
        S each[count * lanes<V>];
        for (int u = 0; u < count; ++u) store(each + u * lanes<V>, sums[u]);
        const int64_t end = std::min<int64_t>(channel + count * lanes<V>, job.width);
        for (int64_t c = channel; c < end; ++c) body(c, each[c - channel]);
      });
    } else {
      V sums[4] = {};
      for_each_place(job, job.begin, job.end,
                     [&](int64_t time, int64_t channel, auto count, auto part) {
                       add(time, channel, count, part, sums);
                     });
      body(0, reduce_add((sums[0] + sums[1]) + (sums[2] + sums[3])));
    }
  }

  void parameter_sums(const CausalConv1dBackward& backward, const Job& job, const View<S>& g,
                      const View<S>& x, const Seen<S>* seen) const {
    S* const column = static_cast<S*>(backward.partial_sums) + job.sample * pieces + job.piece;
    for (int64_t j = 0; j <= args.taps; ++j) {
      const int64_t first = job.channel * (args.taps + 1) + j;
      sums_over_time(job, g, j < args.taps ? &x : nullptr, j, seen, [&](int64_t channel, S sum) {
        column[(first + channel * (args.taps + 1)) * backward.columns()] = sum;
      });
    }
  }

  // The gradient by the inputs at times [begin, end).
  void grad_inputs(const View<T>& to, const Job& job, const View<S>& g, const Filter<S>& filter,
                   const Seen<S>* seen, int64_t begin, int64_t end) const {
    const int64_t after = span, distance = args.dilation * pitch;
    for_each_place(job, begin, end, [&](int64_t time, int64_t channel, auto count, auto part) {
      V sums[count] = {};
      convolve(sums, g.at(time + after, channel), -distance, filter, channel,
               packed ? seen->at(0, time + after) : nullptr,
               packed ? seen->pitch() - args.dilation : 0);
      for (int u = 0; u < count; ++u) {
        part.store(to.at(time, channel) + u * lanes<V>, sums[u]);
      }
    });
  }

  void backward(const CausalConv1dBackward& backward) const {
    const bool parameters = backward.grad_weight.data || backward.grad_bias.data;
    run([&](int64_t first, int64_t last) {
      Coefficients<T> coefficients(args);
      Scratch<S> of_x(tile_size(steps + 2 * span)), of_g(tile_size(steps + 2 * span));
      auto seen_by_range = seen_taps();
      for_each_job(first, last, [&](const Job& job) {
        const Seen<S>* const seen = prepared(seen_by_range, job);
        const int64_t end = std::min(job.end + span, args.length);
        const Filter<S> filter = coefficients.from(job.channel);
        const View<S> x = inputs(job, job.begin - span, end, of_x.get());
        const View<S> g = grad_linear(job, x, filter, seen, end, of_g.get());
        if (parameters) parameter_sums(backward, job, g, x, seen);
        if (backward.grad_state.data && job.begin == 0) {
          grad_inputs(view(backward.grad_state, job, -span), job, g, filter, seen, -span, 0);
        }
        if (backward.grad_x.data) {
          grad_inputs(view(backward.grad_x, job), job, g, filter, seen, job.begin, job.end);
        }
      });
    });
    if (!parameters) return;
    const int64_t columns = backward.columns();
    parallel_for(
        args.channels, 32768 / ((args.taps + 1) * columns + 1) + 1,
        [&](int64_t first, int64_t last) {
          const S* row = static_cast<S*>(backward.partial_sums) + first * (args.taps + 1) * columns;
          for (int64_t c = first; c < last; ++c) {
            for (int64_t j = 0; j <= args.taps; ++j, row += columns) {
              const Weights& total = j < args.taps ? backward.grad_weight : backward.grad_bias;
              const int64_t index = j < args.taps ? c * args.taps + j : c;
              if (total.data) store_weight<T>(total, index, sum(row, columns));
            }
          }
        });
  }
};

// Calls body with the kernel of the arguments' dtype and layout.
template <class Body>
void with_kernel(const CausalConv1d& args, const Body& body) {
  with_type(args.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const auto of_layout = [&](auto packed) {
      if (args.channels_inner) {
        body(Kernel<T, true, packed>{args});
      } else {
        body(Kernel<T, false, packed>{args});
      }
    };
    args.packed() ? of_layout(std::true_type{}) : of_layout(std::false_type{});
  });
}

}  // namespace
}  // namespace GMFAST_LEVEL

GMFAST_DEFINE_CPU_KERNEL(causal_conv1d, CausalConv1d) {
  with_kernel(args, [](const auto& kernel) { kernel.forward(); });
}

GMFAST_DEFINE_CPU_KERNEL(causal_conv1d_backward, CausalConv1dBackward) {
  with_kernel(args.forward, [&](const auto& kernel) { kernel.backward(args); });
}

}  // namespace gmfast
