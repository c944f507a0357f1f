// One position of a small batch is products of matrices and few vectors, so what it costs is reading
// the weights: each is read once a position, in the order in which it lies, by one thread. A row of
// positions, or a large batch, is products of matrices; there a register tile of 8 samples uses a
// weight 8 times.
//
// A sum is one chain of multiply-adds in the order of the taps and channels, whatever the tile, so
// that a sample's bits depend neither on the batch nor on the threads.
#include "../decode.h"

#include <algorithm>

#include "../math/decode.h"
#include "team.h"

namespace gmfast {
inline namespace GMFAST_LEVEL {
namespace {

constexpr int max_tile = native_bytes == 64 ? 8 : 6;

// A tap at a position: where sample 0 of the first column is, and the way to the others.
struct Seen {
  const void* x;
  int64_t sample_stride, column_stride, channels, depthwise;
};

// A layer's position, or its positions in a row: `count` samples, `batch` to a column.
struct Place {
  int64_t row, column, columns, batch;
};

// sums = weight times what is seen, for N samples and P panels that lie panel_size apart.
template <int N, int P, class V, class W>
void multiply(const Seen* seen, int64_t taps, const int64_t (&sample)[N], const int64_t (&column)[N],
              const W* weight, int64_t panel_size, int64_t first_output, int64_t half,
              V (&sums)[N][2 * P]) {
  using S = Scalar<V>;
  constexpr int L = lanes<V>;
  GMFAST_UNROLL
  for (int n = 0; n < N; ++n) {
    GMFAST_UNROLL
    for (int v = 0; v < 2 * P; ++v) sums[n][v] = splat<V>(0);
  }
  for (int64_t t = 0; t < taps; ++t) {
    const S* x[N];
    GMFAST_UNROLL
    for (int n = 0; n < N; ++n) {
      x[n] = static_cast<const S*>(seen[t].x) + sample[n] * seen[t].sample_stride +
             column[n] * seen[t].column_stride;
    }
    if (seen[t].depthwise) {
      // A panel's outputs see the channels of their own index.
      const int64_t step = half ? L : 2 * L;
      for (int p = 0; p < P; ++p) {
        for (int v = 0; v < 2; ++v) {
          const V w = load<V>(weight + p * panel_size + v * L);
          const int64_t channel = first_output + p * step + v * (half ? half : L);
          for (int n = 0; n < N; ++n) {
            sums[n][2 * p + v] = fma(w, load<V>(x[n] + channel), sums[n][2 * p + v]);
          }
        }
      }
      weight += 2 * L;
      continue;
    }
    const int64_t channels = seen[t].channels;
    for (int64_t i = 0; i < channels; ++i, weight += 2 * L) {
      V w[2 * P];
      GMFAST_UNROLL
      for (int p = 0; p < P; ++p) {
        w[2 * p] = load<V>(weight + p * panel_size);
        w[2 * p + 1] = load<V>(weight + p * panel_size + L);
      }
      GMFAST_UNROLL
      for (int n = 0; n < N; ++n) {
        const V value = splat<V>(x[n][i]);
        GMFAST_UNROLL
        for (int v = 0; v < 2 * P; ++v) sums[n][v] = fma(value, w[v], sums[n][v]);
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

  // This thread's share of `count`; where they do not divide, which thread gets more depends on
  // `turn`.
  void share(int64_t count, int64_t turn, int64_t& begin, int64_t& end) const {
    const int64_t part = (thread_ + turn) % threads_;
    begin = count * part / threads_;
    end = count * (part + 1) / threads_;
  }

  S* at(const DecodeSlot& slot, int64_t row, int64_t column) const {
    const DecodeValue& value = program_.values[slot.value];
    return static_cast<S*>(value.data) + decode_offset(value, row, column) + slot.channel;
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
      S* to = at(program_.features, row, column) + b * value.sample_stride;
      const S* from = static_cast<const S*>(run_.features) +
                      b * program_.num_features * run_.features_positions + position -
                      run_.first_feature;
      for (int64_t c = 0; c < program_.num_features; ++c) to[c] = from[c * run_.features_positions];
    }
  }

  void run_layer(const DecodeLayer& layer, int64_t row, int64_t column, int64_t turn) {
    int64_t columns = 1;
    if (layer.whole_row) {
      column = layer.column_phase;
      columns = (program_.columns - column + layer.column_step - 1) / layer.column_step;
    }
    seen_.resize(layer.taps);
    total_ = 0;
    for (int64_t t = 0; t < layer.taps; ++t) {
      const DecodeTap& tap = program_.taps[layer.first_tap + t];
      const DecodeValue& value = program_.values[tap.value];
      seen_[t] = {static_cast<const S*>(value.data) +
                      decode_offset(value, row, column, tap.row, tap.column) + tap.channel,
                  value.sample_stride, layer.column_step / value.scale * value.column_stride,
                  tap.channels, tap.depthwise};
      // Taps of a coarser grid stay where they are for several columns; a layer of one phase sees
      // every column of it.
      total_ += tap.depthwise ? 1 : tap.channels;
    }
    const int64_t outputs = is_gate(layer.activation) ? L : 2 * L;
    const int64_t panels = (layer.outputs + outputs - 1) / outputs;
    const int64_t samples = columns * run_.batch;
    const Place place{row, column, columns, run_.batch};
    int64_t begin, end;
    if (samples == 1) {
      share(panels, turn, begin, end);
      for (; begin + 4 <= end; begin += 4) run_tile<1, 4>(layer, place, 0, 1, begin);
      for (; begin < end; ++begin) run_tile<1, 1>(layer, place, 0, 1, begin);
    } else if (samples == 2) {
      share(panels, turn, begin, end);
      for (; begin + 2 <= end; begin += 2) run_tile<2, 2>(layer, place, 0, 2, begin);
      for (; begin < end; ++begin) run_tile<2, 1>(layer, place, 0, 2, begin);
    } else {
      const int64_t tiles = (samples + max_tile - 1) / max_tile;
      share(panels * tiles, turn, begin, end);
      for (int64_t item = begin; item < end; ++item) {
        const int64_t panel = item / tiles, first = item % tiles * max_tile;
        const int64_t count = std::min<int64_t>(samples - first, max_tile);
        if (count > 4) {
          run_tile<max_tile, 1>(layer, place, first, count, panel);
        } else {
          run_tile<4, 1>(layer, place, first, count, panel);
        }
      }
    }
  }

  // `count` of N samples from `first` on, and P panels.
  template <int N, int P>
  void run_tile(const DecodeLayer& layer, const Place& place, int64_t first, int64_t count,
                int64_t panel) const {
    int64_t sample[N], column[N];
    for (int n = 0; n < N; ++n) {
      const int64_t index = first + (n < count ? n : 0);
      column[n] = place.columns == 1 ? 0 : index / place.batch;
      sample[n] = place.columns == 1 ? index : index % place.batch;
    }
    const bool gated = is_gate(layer.activation);
    const int64_t step = gated ? L : 2 * L, panel_size = total_ * 2 * L;
    V sums[N][2 * P];
    multiply<N, P>(seen_.data(), layer.taps, sample, column,
                   static_cast<const W*>(layer.weight) + panel * panel_size, panel_size,
                   panel * step, gated ? layer.outputs : 0, sums);
    for (int n = 0; n < N && n < count; ++n) {
      const int64_t at_column = place.column + column[n] * layer.column_step;
      GMFAST_UNROLL
      for (int p = 0; p < P; ++p) {
        finish_panel(layer, place.row, at_column, sample[n], panel + p, gated, sums[n][2 * p],
                     sums[n][2 * p + 1]);
      }
    }
  }

  // What is added to a panel's sums, its activation, and storing it.
  void finish_panel(const DecodeLayer& layer, int64_t row, int64_t column, int64_t b, int64_t panel,
                    bool gated, V first, V second) const {
    const int64_t o = panel * (gated ? L : 2 * L);
    const S* bias = static_cast<const S*>(layer.bias) + panel * 2 * L;
    first += load<V>(bias);
    second += load<V>(bias + L);
    if (layer.context) {
      const int64_t outputs = gated ? L : 2 * L;
      const int64_t panels = (layer.outputs + outputs - 1) / outputs;
      const S* context = static_cast<const S*>(layer.context) + (b * panels + panel) * 2 * L;
      first += load<V>(context);
      second += load<V>(context + L);
    }
    const int count = int(std::min<int64_t>(layer.outputs - o, L));
    if (gated) {
      if (const S* add = operand(layer.add, row, column, b)) {
        first += load_some(add + o, count);
        second += load_some(add + layer.outputs + o, count);
      }
      put(layer, row, column, b, o, count, decode_activation<V>(layer.activation, first, second));
      return;
    }
    const V sums[2] = {first, second};
    for (int v = 0; v < 2; ++v) {
      const int64_t channel = o + v * L;
      const int rest = int(std::min<int64_t>(layer.outputs - channel, L));
      if (rest <= 0) return;
      V y = sums[v];
      if (const S* add = operand(layer.add, row, column, b)) y += load_some(add + channel, rest);
      put(layer, row, column, b, channel, rest, decode_activation<V>(layer.activation, y, y));
    }
  }

  void put(const DecodeLayer& layer, int64_t row, int64_t column, int64_t b, int64_t channel,
           int count, V y) const {
    if (const S* residual = operand(layer.residual, row, column, b)) {
      y += load_some(residual + channel, count);
    }
    if (S* out = operand(layer.out, row, column, b)) store_some(out + channel, y, count);
    if (S* out = operand(layer.activated, row, column, b)) {
      if (layer.activated_by == DecodeActivation::concat_elu) {
        V positive, negative;
        concat_elu(y, positive, negative);
        store_some(out + channel, positive, count);
        store_some(out + layer.outputs + channel, negative, count);
      } else {
        store_some(out + channel, decode_activation<V>(layer.activated_by, y, y), count);
      }
    }
  }

  S* operand(const DecodeSlot& slot, int64_t row, int64_t column, int64_t b) const {
    if (slot.value < 0) return nullptr;
    return at(slot, row, column) + b * program_.values[slot.value].sample_stride;
  }

  static V load_some(const S* p, int count) {
    return count == L ? load<V>(p) : load_partial<V>(p, count);
  }
  static void store_some(S* p, V v, int count) {
    count == L ? store(p, v) : store_partial(p, v, count);
  }

  const DecodeRun& run_;
  const DecodeProgram& program_;
  const int thread_, threads_;
  std::vector<Seen> seen_;  // of the layer that runs
  int64_t total_ = 0;       // rows of one of its panels
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
