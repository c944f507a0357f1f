// The executor of decode programs on a GPU: a launch for each layer that runs at a position.
//
// One position of a batch is products of matrices and few vectors, bound by reading the weights
// from L2 or memory, and a layer lasts as long as its slowest block. So a block computes one panel
// of 32 sums, one for each lane, with as many warps as the layer has strips (up to 16, taking
// turns). A warp requests 16 or 32 rows of a strip's weights at once, so a block has tens of KiB in
// flight. A tile of up to 8 samples, or columns of a row, uses each weight as often.
//
// A warp adds the channels of its strips in their order, and the block adds its warps in theirs.
// Both orders depend on the layer alone, so a sample's bits do not depend on the batch.
#include "../common/decode.h"
#include "launch.h"

namespace gmfast {
namespace {

static_assert(decode_cuda_panel == warp_size, "a lane for each sum of a panel");
constexpr int half_warp = warp_size / 2;
constexpr int most_warps = 16;

struct LayerLaunch {
  DecodeLayer layer;
  DecodeValue add, residual, out, activated;  // the values of the layer's slots
  const DecodeStrip* strips;
  const int64_t* position;
  int64_t columns;   // of the image
  int batch, count;  // count: samples in all columns that run at once
  int tiles;         // of up to N samples
  int64_t panels;
};

// A position of the program.
struct Position {
  int64_t row, column;

  GMFAST_DEVICE Position(int64_t position, int64_t columns)
      : row(columns == 1 ? position : position / columns), column(position - row * columns) {}
};

// A sample, and a column among those that run at once.
struct Place {
  int sample, column;

  // Number `index`, columns outermost.
  GMFAST_DEVICE Place(const LayerLaunch& args, int index)
      : column(args.count == args.batch ? 0 : index / args.batch) {
    sample = index - column * args.batch;
  }

  GMFAST_DEVICE void next(int batch) {
    const bool wraps = ++sample == batch;
    sample = wraps ? 0 : sample;
    column += wraps;
  }
};

// Loads a lane's sum from `count` rows of a panel's weights, and zeros up to N.
template <int N, class S, class W>
GMFAST_DEVICE void load_rows(const W* weight, int64_t count, S (&rows)[N]) {
  GMFAST_UNROLL
  for (int i = 0; i < N; ++i) rows[i] = i < count ? load_element<S>(weight + i * warp_size) : S(0);
}

// Finishes a panel's sums, one in each lane: bias, operands, activation and stores. All lanes of a
// warp call it together.
template <class S>
class Output {
 public:
  GMFAST_DEVICE Output(const LayerLaunch& args, int64_t panel)
      : args_(args), layer_(args.layer), panel_(panel), gated_(is_gate(args.layer.activation)) {
    const int lane = thread_index() % warp_size;
    second_ = gated_ && lane >= half_warp;
    channel_ = gated_ ? panel * half_warp + lane % half_warp : panel * warp_size + lane;
    inside_ = channel_ < layer_.outputs;
  }

  // The index of the lane's sum in the layer.
  GMFAST_DEVICE int64_t sum() const { return channel_ + (second_ ? layer_.outputs : 0); }
  GMFAST_DEVICE bool inside() const { return inside_; }

  GMFAST_DEVICE void finish(S total, int64_t row, int64_t column, int64_t sample) const {
    const int lane = thread_index() % warp_size;
    total += static_cast<const S*>(layer_.bias)[panel_ * warp_size + lane];
    if (layer_.context) {
      total += static_cast<const S*>(
          layer_.context)[(sample * args_.panels + panel_) * warp_size + lane];
    }
    const auto at = [&](const DecodeValue& value, const DecodeSlot& slot) {
      return static_cast<S*>(value.data) + decode_offset(value, row, column) +
             sample * value.sample_stride + slot.channel;
    };
    if (layer_.add.value >= 0 && inside_) total += at(args_.add, layer_.add)[sum()];
    const S gate = __shfl_xor_sync(0xffffffffu, total, half_warp);
    if (!inside_ || second_) return;
    S y = decode_activation<S>(layer_.activation, total, gate);
    if (layer_.residual.value >= 0) y += at(args_.residual, layer_.residual)[channel_];
    if (layer_.out.value >= 0) at(args_.out, layer_.out)[channel_] = y;
    if (layer_.activated.value >= 0) {
      S* const to = at(args_.activated, layer_.activated) + channel_;
      if (layer_.activated_by == DecodeActivation::concat_elu) {
        concat_elu(y, to[0], to[layer_.outputs]);
      } else {
        to[0] = decode_activation<S>(layer_.activated_by, y, y);
      }
    }
  }

 private:
  const LayerLaunch& args_;
  const DecodeLayer& layer_;
  const int64_t panel_;
  const bool gated_;
  bool second_, inside_;  // second_: the lane holds another lane's gate
  int64_t channel_;
};

// Weights of type W, in tiles of N samples.
template <class S, class W, int N>
__global__ void __launch_bounds__(most_warps* warp_size) layer_kernel(LayerLaunch args) {
  // Weights that a lane requests at once: as many as registers allow.
  constexpr int depth = (N == 1 ? 128 : 64) / int(sizeof(S)), packed = pack_elements<S>;
  S* const shared = dynamic_shared<S>();  // (warps, N, 32): a strip's values, then a warp's sums
  const int lane = thread_index() % warp_size, warp = thread_index() / warp_size;
  const int warps = block_threads() / warp_size;
  const DecodeLayer& layer = args.layer;
  const int64_t panel = block_index() / args.tiles;
  const int first = int(block_index() - panel * args.tiles) * N;
  const int count = args.count - first < N ? args.count - first : N;
  const Place first_place(args, first);
  Position at(*args.position, args.columns);
  if (layer.whole_row) at.column = layer.column_phase;
  const Output<S> output(args, panel);

  S sums[N];
  GMFAST_UNROLL
  for (int n = 0; n < N; ++n) sums[n] = 0;
  S* const mine = shared + warp * N * warp_size;
  for (int64_t i = warp; i < layer.taps; i += warps) {
    const DecodeStrip& strip = args.strips[i];
    const int channels = int(strip.channels);
    const W* const weight = static_cast<const W*>(strip.weight) + panel * strip.panel_size + lane;
    // The channel that a lane loads: in a depthwise strip, that of its own sum.
    const int64_t channel = strip.depthwise ? output.sum() : lane;
    const bool sees = strip.depthwise ? output.inside() : lane < channels;
    const S* const x = static_cast<const S*>(strip.value.data) + strip.channel + channel +
                       decode_offset(strip.value, at.row, at.column, strip.row, strip.column);
    const int64_t sample_stride = strip.value.sample_stride;
    const int64_t column_stride = layer.column_step / strip.value.scale * strip.value.column_stride;
    S rows[depth];
    load_rows(weight, strip.depthwise ? 1 : channels, rows);
    __syncwarp();  // lanes may still read the last strip's values
    Place place = first_place;
    GMFAST_UNROLL
    for (int n = 0; n < N; ++n) {
      const bool here = sees && n < count;
      mine[n * warp_size + lane] =
          here ? x[place.sample * sample_stride + place.column * column_stride] : S(0);
      place.next(args.batch);
    }
    __syncwarp();
    if (strip.depthwise) {
      GMFAST_UNROLL
      for (int n = 0; n < N; ++n) sums[n] = fma(rows[0], mine[n * warp_size + lane], sums[n]);
      continue;
    }
    for (int row = 0; row < channels; row += depth) {
      if (row > 0) load_rows(weight + row * warp_size, channels - row, rows);
      GMFAST_UNROLL
      for (int j = 0; j < depth; j += packed) {
        GMFAST_UNROLL
        for (int n = 0; n < N; ++n) {
          const auto values = load_pack<packed>(mine + n * warp_size + row + j);
          GMFAST_UNROLL
          for (int k = 0; k < packed; ++k) {
            sums[n] = fma(rows[j + k], values.template get<S>(k), sums[n]);
          }
        }
      }
    }
  }
  __syncwarp();  // the values have been read
  GMFAST_UNROLL
  for (int n = 0; n < N; ++n) mine[n * warp_size + lane] = sums[n];
  __syncthreads();
  for (int n = warp; n < count; n += warps) {
    S total = 0;
    for (int w = 0; w < warps; ++w) total += shared[(w * N + n) * warp_size + lane];
    const Place place(args, first + n);
    output.finish(total, at.row, at.column + place.column * layer.column_step, place.sample);
  }
}

template <class S, class W>
void launch_layer(const DecodeCudaRun& args, const DecodeLayer& layer, void* stream) {
  const DecodeProgram& program = args.run.program;
  const auto value_of = [&](const DecodeSlot& slot) {
    return slot.value < 0 ? DecodeValue{} : program.values[slot.value];
  };
  const int64_t columns =
      layer.whole_row ? ceil_div(program.columns - layer.column_phase, layer.column_step) : 1;
  const int64_t count = columns * args.run.batch;
  if (count > INT_MAX) {
    throw std::runtime_error("gmfast: expected fewer than 2^31 samples of a row");
  }
  const int tile = count == 1 ? 1 : count <= 4 ? 4 : 8;
  const int64_t tiles = ceil_div(count, tile);
  const int64_t panels = ceil_div(layer.outputs, is_gate(layer.activation) ? half_warp : warp_size);
  // As few warps as finish in as many rounds as the most would.
  const int64_t rounds = std::max<int64_t>(ceil_div(layer.taps, most_warps), 1);
  const int warps = int(std::max<int64_t>(ceil_div(layer.taps, rounds), 1));
  launch(tile == 1   ? layer_kernel<S, W, 1>
         : tile == 4 ? layer_kernel<S, W, 4>
                     : layer_kernel<S, W, 8>,
         panels * tiles, warps * warp_size, size_t(warps) * tile * warp_size * sizeof(S), stream,
         LayerLaunch{layer, value_of(layer.add), value_of(layer.residual), value_of(layer.out),
                     value_of(layer.activated), args.strips + layer.first_tap, args.position,
                     program.columns, int(args.run.batch), int(count), int(tiles), panels});
}

// ---------------------------------------------------------------------------------------------
// Draws and local features: a thread takes one sample, or one feature of a sample
// ---------------------------------------------------------------------------------------------

constexpr int draw_threads = 32;  // few, so that a batch is on many multiprocessors
constexpr int feature_threads = 128;

struct DrawLaunch {
  DecodeRun run;
  DecodeDraw draw;
  DecodeValue params, value;
  const int64_t *position, *seed;
  bool fed;
};

template <class S, bool mixture>
__global__ void __launch_bounds__(draw_threads) draw_kernel(DrawLaunch args) {
  const int64_t sample = block_index() * draw_threads + thread_index();
  if (sample >= args.run.batch) return;
  const DecodeValue values[2] = {args.params, args.value};
  DecodeRun run = args.run;
  run.program.values = values;
  if (args.seed) run.seed = *args.seed;
  DecodeDraw draw = args.draw;
  draw.params.value = 0;
  draw.value.value = 1;
  // Known at compile time, so that each kernel contains the code of mixtures or of the others.
  draw.head = mixture                              ? DecodeHead::mixture
              : draw.head == DecodeHead::bernoulli ? DecodeHead::bernoulli
                                                   : DecodeHead::categorical;
  const Position at(*args.position, run.program.columns);
  decode_draw<S>(run, draw, at.row, at.column, args.fed, sample);
}

template <class S>
void launch_draw(const DecodeCudaRun& args, const DecodeDraw& draw, bool fed, void* stream) {
  const DecodeValue* values = args.run.program.values;
  const auto kernel =
      draw.head == DecodeHead::mixture ? &draw_kernel<S, true> : &draw_kernel<S, false>;
  launch(
      kernel, ceil_div(args.run.batch, draw_threads), draw_threads, 0, stream,
      DrawLaunch{args.run, draw, draw.params.value < 0 ? DecodeValue{} : values[draw.params.value],
                 values[draw.value.value], args.position, args.seed, fed});
}

struct FeaturesLaunch {
  const void* features;  // (batch, channels, positions) from position `first` on
  int64_t batch, channels, positions, first;
  DecodeValue value;
  int64_t channel;
  const int64_t* position;
  int64_t columns;
};

template <class S>
__global__ void __launch_bounds__(feature_threads) features_kernel(FeaturesLaunch args) {
  const int64_t index = block_index() * feature_threads + thread_index();
  if (index >= args.batch * args.channels) return;
  const int64_t position = *args.position;
  const Position at(position, args.columns);
  const int64_t sample = index / args.channels, channel = index % args.channels;
  S* const to = static_cast<S*>(args.value.data) + decode_offset(args.value, at.row, at.column) +
                sample * args.value.sample_stride + args.channel;
  to[channel] =
      static_cast<const S*>(args.features)[index * args.positions + position - args.first];
}

template <class S>
void launch_features(const DecodeCudaRun& args, void* stream) {
  const DecodeRun& run = args.run;
  const DecodeProgram& program = run.program;
  launch(features_kernel<S>, ceil_div(run.batch * program.num_features, feature_threads),
         feature_threads, 0, stream,
         FeaturesLaunch{run.features, run.batch, program.num_features, run.features_positions,
                        run.first_feature, program.values[program.features.value],
                        program.features.channel, args.position, program.columns});
}

__global__ void __launch_bounds__(1) advance_kernel(int64_t* position) { ++*position; }

// Enqueues the launches of a run on the stream.
template <class S, class W>
void enqueue(const DecodeCudaRun& args, void* stream) {
  const DecodeRun& run = args.run;
  const DecodeProgram& program = run.program;
  int64_t position = run.position, step = run.step;
  bool fed = run.fed != nullptr;
  const auto finish = [&] {
    run.cursor[0] = position;
    run.cursor[1] = step;
  };
  for (; position < run.end; ++position, step = 0) {
    const int64_t row = position / program.columns, column = position % program.columns;
    for (; step < program.num_steps; ++step) {
      const DecodeStep& at = program.steps[step];
      if (at.kind == DecodeStepKind::layers) {
        for (int64_t i = at.begin; i < at.end; ++i) {
          const DecodeLayer& layer = program.layers[i];
          if (decode_runs(layer, row, column)) launch_layer<S, W>(args, layer, stream);
        }
      } else if (at.kind == DecodeStepKind::draw) {
        if (run.stop_at_draw && !fed) return finish();
        launch_draw<S>(args, program.draws[at.begin], fed, stream);
        fed = false;
      } else {
        launch_features<S>(args, stream);
      }
    }
    launch(advance_kernel, 1, 1, 0, stream, args.position);
  }
  finish();
}

}  // namespace

void decode_cuda(const DecodeCudaRun& args, void* stream) {
  if (args.run.program.dtype == DType::float64) {
    enqueue<double, double>(args, stream);
  } else if (args.run.program.weight_dtype == DType::bfloat16) {
    enqueue<float, BFloat16>(args, stream);
  } else {
    enqueue<float, float>(args, stream);
  }
}

}  // namespace gmfast
