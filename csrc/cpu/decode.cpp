// The executor of decode programs on the CPU.
//
// One position of a small batch is matrix-vector products, bound by reading the weights: each is
// read once a position, in the order of memory, by one thread. A row of positions, or a large
// batch, is matrix products, where a register tile of up to 8 samples uses each weight as often.
//
// A sum is one chain of multiply-adds in the order of the taps and channels, whatever the tile, so
// a sample's bits depend neither on the batch nor on the threads.
#include "../args/decode.h"

#include <algorithm>
#include <type_traits>
#include <vector>

#include "../common/decode.h"
#include "../common/team.h"

namespace gmfast {
inline namespace GMFAST_LEVEL {
namespace {

constexpr int max_tile = native_bytes == 64 ? 8 : 6;

// A value's channels where a layer reads or writes them: the address for sample 0 in the layer's
// first column, and the strides from there.
template <class S>
struct Channels {
  S* data;  // null: none
  int64_t sample_stride, column_stride;

  S* at(int64_t sample, int64_t column) const {
    return data + sample * sample_stride + column * column_stride;
  }
};

// A tap at the layer's position.
template <class S>
struct Seen {
  Channels<const S> x;
  int64_t channels;
  bool depthwise;
};

// Operands and results of a layer besides its taps.
template <class S>
struct Finish {
  const DecodeLayer* layer;
  int64_t panels;
  Channels<S> add, residual, out, activated;
};

// A panel's row holds the weights of one channel or, in bfloat16, of a pair: the lower half of a
// 32-bit word is the even channel's, so one load, a shift and a mask give two vectors of floats. An
// odd number of channels is padded with a weight of 0.
template <class W>
constexpr int channels_of_row = std::is_same<W, BFloat16>::value ? 2 : 1;
template <class V, class W>
constexpr int64_t row_size = 2 * lanes<V> * channels_of_row<W>;

template <class V>
GMFAST_HD void load_row(const Scalar<V>* weight, V (&w)[1]) {
  w[0] = load<V>(weight);
}
template <class V>
GMFAST_HD void load_row(const BFloat16* weight, V (&w)[2]) {
  using U = UnsignedInteger<V>;
  const U words = bit_cast<U>(load<V>(reinterpret_cast<const float*>(weight)));
  w[0] = bit_cast<V>(words << 16);
  w[1] = bit_cast<V>(words & 0xffff0000u);
}

// A tile's share of the next panel, prefetched while it multiplies, `step` bytes for each row: when
// several tiles use a panel, memory is read while they compute.
struct Ahead {
  const char* at;
  int64_t step;
};

// sums = weight * taps for N samples and P panels, panel_size elements apart. A depthwise tap
// multiplies the channel of the sum's own index, the gates of a gate those `half` channels behind.
template <int N, int P, class V, class W>
void multiply(const Seen<Scalar<V>>* seen, int64_t taps, const int64_t (&sample)[N],
              const int64_t (&column)[N], const W* weight, int64_t panel_size, int64_t first_output,
              int64_t half, Ahead ahead, V* sums) {
  using S = Scalar<V>;
  constexpr int L = lanes<V>;
  V tile[N][2 * P];
  GMFAST_UNROLL
  for (int n = 0; n < N; ++n) {
    GMFAST_UNROLL
    for (int v = 0; v < 2 * P; ++v) tile[n][v] = splat<V>(0);
  }
  for (int64_t t = 0; t < taps; ++t) {
    const S* x[N];
    GMFAST_UNROLL
    for (int n = 0; n < N; ++n) x[n] = seen[t].x.at(sample[n], column[n]);
    if (seen[t].depthwise) {
      GMFAST_UNROLL
      for (int v = 0; v < 2 * P; ++v) {
        V w[channels_of_row<W>];
        load_row(weight + v / 2 * panel_size + v % 2 * (row_size<V, W> / 2), w);
        const int64_t channel = first_output + (half ? v / 2 * L + v % 2 * half : int64_t(v) * L);
        GMFAST_UNROLL
        for (int n = 0; n < N; ++n) tile[n][v] = fma(w[0], load<V>(x[n] + channel), tile[n][v]);
      }
      weight += row_size<V, W>;
      continue;
    }
    const int64_t channels = seen[t].channels;
    for (int64_t i = 0; i < channels; i += channels_of_row<W>, weight += row_size<V, W>) {
      if constexpr (N > 2) {
        __builtin_prefetch(ahead.at);
        ahead.at += ahead.step;
      }
      V w[2 * P][channels_of_row<W>];
      GMFAST_UNROLL
      for (int v = 0; v < 2 * P; ++v) {
        load_row(weight + v / 2 * panel_size + v % 2 * (row_size<V, W> / 2), w[v]);
      }
      GMFAST_UNROLL
      for (int c = 0; c < channels_of_row<W>; ++c) {
        GMFAST_UNROLL
        for (int n = 0; n < N; ++n) {
          const V value = splat<V>(x[n][i + c]);
          GMFAST_UNROLL
          for (int v = 0; v < 2 * P; ++v) tile[n][v] = fma(value, w[v][c], tile[n][v]);
        }
      }
    }
  }
  GMFAST_UNROLL
  for (int n = 0; n < N; ++n) {
    GMFAST_UNROLL
    for (int v = 0; v < 2 * P; ++v) store(reinterpret_cast<S*>(sums + n * 2 * P + v), tile[n][v]);
  }
}

template <class V, class S>
V load_some(const S* p, int count) {
  return count == lanes<V> ? load<V>(p) : load_partial<V>(p, count);
}
template <class V, class S>
void store_some(S* p, V v, int count) {
  count == lanes<V> ? store(p, v) : store_partial(p, v, count);
}

// Stores `count` outputs from `channel` on, given their sums `a` and, in a gate, their gates `b`.
template <class V, class S>
GMFAST_HD void finish_vector(const Finish<S>& finish, int64_t sample, int64_t column,
                             int64_t channel, int count, V a, V b) {
  const DecodeLayer& layer = *finish.layer;
  if (finish.add.data) {
    const S* add = finish.add.at(sample, column) + channel;
    a += load_some<V>(add, count);
    if (is_gate(layer.activation)) b += load_some<V>(add + layer.outputs, count);
  }
  V y = decode_activation<V>(layer.activation, a, b);
  if (finish.residual.data) {
    y += load_some<V>(finish.residual.at(sample, column) + channel, count);
  }
  if (finish.out.data) store_some(finish.out.at(sample, column) + channel, y, count);
  if (finish.activated.data) {
    S* out = finish.activated.at(sample, column) + channel;
    if (layer.activated_by == DecodeActivation::concat_elu) {
      V positive, negative;
      concat_elu(y, positive, negative);
      store_some(out, positive, count);
      store_some(out + layer.outputs, negative, count);
    } else {
      store_some(out, decode_activation<V>(layer.activated_by, y, y), count);
    }
  }
}

// Stores the outputs of `count` samples and `panels` panels, given sums[sample][panel][2 vectors].
template <class V, class S>
void finish_tile(const Finish<S>& finish, const int64_t* sample, const int64_t* column, int count,
                 int64_t panel, int panels, const V* sums) {
  constexpr int L = lanes<V>;
  const DecodeLayer& layer = *finish.layer;
  const bool gated = is_gate(layer.activation);
  for (int n = 0; n < count; ++n) {
    for (int p = 0; p < panels; ++p, sums += 2) {
      const S* bias = static_cast<const S*>(layer.bias) + (panel + p) * 2 * L;
      V a = sums[0] + load<V>(bias), b = sums[1] + load<V>(bias + L);
      if (layer.context) {
        const S* context =
            static_cast<const S*>(layer.context) + (sample[n] * finish.panels + panel + p) * 2 * L;
        a += load<V>(context);
        b += load<V>(context + L);
      }
      const int64_t channel = (panel + p) * (gated ? L : 2 * L);
      const int64_t rest = layer.outputs - channel;
      finish_vector<V>(finish, sample[n], column[n], channel, int(std::min<int64_t>(rest, L)), a,
                       b);
      if (!gated && rest > L) {
        finish_vector<V>(finish, sample[n], column[n], channel + L,
                         int(std::min<int64_t>(rest - L, L)), b, b);
      }
    }
  }
}

template <class S, class W>
class Executor {
 public:
  using V = Native<S>;
  static constexpr int L = lanes<V>;

  Executor(const DecodeRun& run, int thread)
      : run_(run), program_(run.program), thread_(thread), threads_(run.team->size()) {}

  void operator()() {
    int64_t position = run_.position, step = run_.step;
    const void* fed = run_.fed;
    while (position < run_.end) {
      const int64_t row = position / program_.columns, column = position % program_.columns;
      for (; step < program_.num_steps; ++step) {
        const DecodeStep& at = program_.steps[step];
        bool did = true;
        if (at.kind == DecodeStepKind::layers) {
          did = false;
          for (int64_t i = at.begin; i < at.end; ++i) {
            const DecodeLayer& layer = program_.layers[i];
            if (decode_runs(layer, row, column)) {
              run_layer(layer, row, column, i - at.begin);
              did = true;
            }
          }
        } else if (at.kind == DecodeStepKind::draw) {
          if (run_.stop_at_draw && !fed) return finish(position, step);
          draw(program_.draws[at.begin], row, column, fed != nullptr);
          fed = nullptr;
        } else {
          load_features(row, column, position);
        }
        if (did) run_.team->barrier();
      }
      step = 0;
      ++position;
    }
    finish(position, step);
  }

 private:
  void finish(int64_t position, int64_t step) {
    if (thread_ == 0) {
      run_.cursor[0] = position;
      run_.cursor[1] = step;
    }
  }

  // This thread's share of `count` items; `turn` rotates which threads get one more.
  void share(int64_t count, int64_t turn, int64_t& begin, int64_t& end) const {
    const int64_t part = (thread_ + turn) % threads_;
    begin = count * part / threads_;
    end = count * (part + 1) / threads_;
  }

  void draw(const DecodeDraw& draw, int64_t row, int64_t column, bool fed) const {
    int64_t begin, end;
    share(run_.batch, 0, begin, end);
    for (int64_t b = begin; b < end; ++b) decode_draw<V>(run_, draw, row, column, fed, b);
  }

  void load_features(int64_t row, int64_t column, int64_t position) const {
    int64_t begin, end;
    share(run_.batch, 0, begin, end);
    const DecodeValue& value = program_.values[program_.features.value];
    for (int64_t b = begin; b < end; ++b) {
      S* to = static_cast<S*>(value.data) + decode_offset(value, row, column) +
              b * value.sample_stride + program_.features.channel;
      const S* from = static_cast<const S*>(run_.features) +
                      b * program_.num_features * run_.features_positions + position -
                      run_.first_feature;
      for (int64_t c = 0; c < program_.num_features; ++c) to[c] = from[c * run_.features_positions];
    }
  }

  // A value's channels at an offset from the layer's position.
  Channels<S> channels_of(const DecodeLayer& layer, int64_t row, int64_t column,
                          int64_t value_index, int64_t channel, int64_t row_away = 0,
                          int64_t column_away = 0) const {
    if (value_index < 0) return {nullptr, 0, 0};
    const DecodeValue& value = program_.values[value_index];
    const int64_t step = value.column_stride;
    return {static_cast<S*>(value.data) + decode_offset(value, row, column, row_away, column_away) +
                channel,
            value.sample_stride,
            step && layer.whole_row ? layer.column_step / value.scale * step : 0};
  }

  void run_layer(const DecodeLayer& layer, int64_t row, int64_t column, int64_t turn) {
    int64_t columns = 1;
    if (layer.whole_row) {
      column = layer.column_phase;
      columns = (program_.columns - column + layer.column_step - 1) / layer.column_step;
    }
    seen_.resize(layer.taps);
    rows_ = 0;
    for (int64_t t = 0; t < layer.taps; ++t) {
      const DecodeTap& tap = program_.taps[layer.first_tap + t];
      const auto x = channels_of(layer, row, column, tap.value, tap.channel, tap.row, tap.column);
      seen_[t] = {{x.data, x.sample_stride, x.column_stride}, tap.channels, tap.depthwise};
      rows_ += tap.depthwise ? 1 : (tap.channels + channels_of_row<W> - 1) / channels_of_row<W>;
    }
    const auto operand = [&](const DecodeSlot& slot) {
      return channels_of(layer, row, column, slot.value, slot.channel);
    };
    const int64_t outputs = is_gate(layer.activation) ? L : 2 * L;
    const int64_t panels = (layer.outputs + outputs - 1) / outputs;
    finish_ = {&layer,
               panels,
               operand(layer.add),
               operand(layer.residual),
               operand(layer.out),
               operand(layer.activated)};

    samples_ = columns * run_.batch;
    int64_t begin, end;
    if (samples_ == 1) {
      share(panels, turn, begin, end);
      for (; begin + 4 <= end; begin += 4) run_tile<1, 4>(0, begin);
      for (; begin < end; ++begin) run_tile<1, 1>(0, begin);
    } else if (samples_ == 2) {
      share(panels, turn, begin, end);
      for (; begin + 2 <= end; begin += 2) run_tile<2, 2>(0, begin);
      for (; begin < end; ++begin) run_tile<2, 1>(0, begin);
    } else {
      const int64_t tiles = (samples_ + max_tile - 1) / max_tile;
      share(panels * tiles, turn, begin, end);
      for (int64_t item = begin; item < end; ++item) {
        const int64_t panel = item / tiles, first = item % tiles * max_tile;
        const int64_t row_bytes = row_size<V, W> * sizeof(W), panel_bytes = rows_ * row_bytes;
        const char* next = static_cast<const char*>(layer.weight) + (panel + 1) * panel_bytes;
        const Ahead ahead{next + item % tiles * (panel_bytes / tiles), row_bytes / tiles};
        samples_ - first > 4 ? run_tile<max_tile, 1>(first, panel, ahead)
                             : run_tile<4, 1>(first, panel, ahead);
      }
    }
  }

  // N samples from `first` on (fewer at the end) and P panels.
  template <int N, int P>
  void run_tile(int64_t first, int64_t panel, Ahead ahead = {}) const {
    const DecodeLayer& layer = *finish_.layer;
    const int count = int(std::min<int64_t>(samples_ - first, N));
    int64_t sample[N], column[N];
    for (int n = 0; n < N; ++n) {
      const int64_t index = first + (n < count ? n : 0);
      column[n] = layer.whole_row ? index / run_.batch : 0;
      sample[n] = layer.whole_row ? index % run_.batch : index;
    }
    const bool gated = is_gate(layer.activation);
    const int64_t panel_size = rows_ * row_size<V, W>;
    V sums[N * 2 * P];
    multiply<N, P, V, W>(seen_.data(), layer.taps, sample, column,
                         static_cast<const W*>(layer.weight) + panel * panel_size, panel_size,
                         panel * (gated ? L : 2 * L), gated ? layer.outputs : 0, ahead, sums);
    finish_tile<V>(finish_, sample, column, count, panel, P, sums);
  }

  const DecodeRun& run_;
  const DecodeProgram& program_;
  const int thread_, threads_;
  // Of the current layer: taps, rows in a panel, samples in all columns, operands and results.
  std::vector<Seen<S>> seen_;
  int64_t rows_ = 0, samples_ = 0;
  Finish<S> finish_;
};

template <class S, class W>
void run_on_team(const DecodeRun& run) {
  run.team->run(
      [](void* context, int thread) {
        Executor<S, W>(*static_cast<const DecodeRun*>(context), thread)();
      },
      const_cast<DecodeRun*>(&run));
}

}  // namespace
}  // namespace GMFAST_LEVEL

GMFAST_DEFINE_CPU_KERNEL(decode, DecodeRun) {
  if (args.program.dtype == DType::float64) {
    run_on_team<double, double>(args);
  } else if (args.program.weight_dtype == DType::bfloat16) {
    run_on_team<float, BFloat16>(args);
  } else {
    run_on_team<float, float>(args);
  }
}

}  // namespace gmfast
