// Decode programs: a model as a list of layers that run for one position after another, each from
// what the ones before it left in memory, with nothing computed twice.
//
// Positions are the pixels of an image in raster order, or the samples of a sound, which is an
// image one column wide. A *value* is what a layer makes at every position of its grid, for every
// sample of the batch; as many rows of it are kept as other layers look back, in a ring. A layer is
//
//   y = activation(bias + context + sum over taps of weight times a value at some offset + add) +
//   residual
//
// and stores y, an elementwise function of it, or both. It runs at the positions whose row and
// column leave row_phase and column_phase when divided by row_step and column_step: so a layer at
// half resolution has steps of 2, and one that doubles the resolution is four layers, a phase each.
// What depends on whole rows above only runs for a row at once, before the row's first pixel.
//
// Between layers, a *draw* takes the parameters of a distribution, draws from it, or takes what is
// given, and puts that where the layers of later positions (or of later colours) see it.
//
// Structs are made of 8-byte fields only: Python fills them from tuples of integers.
#pragma once

#include <cstdint>

#include "../common/kernel.h"
#include "../common/tensor.h"
#include "../math/simd.h"

namespace gmfast {

class Team;

struct DecodeValue {
  void* data;     // at column 0 of the first row of the ring; zeros lie to both sides of a row
  int64_t scale;  // its grid has every scale-th row and column
  int64_t rows;   // of the ring
  int64_t row_stride, column_stride, sample_stride;  // column_stride 0: of a row one column is kept
};

// Channels channel, ..., channel + channels - 1 of a value, as many rows and columns of its grid
// away.
struct DecodeTap {
  int64_t value, row, column, channel, channels;
  int64_t depthwise;  // output c sees channel c alone
};

enum class DecodeActivation : int64_t { none, relu, elu, silu, gate, glu, concat_elu };

// Channels of a value from `channel` on; value -1: none.
struct DecodeSlot {
  int64_t value, channel;
};

struct DecodeLayer {
  int64_t first_tap, taps;
  const void* weight;   // [panel][channels of all taps][decode_panel]; in bfloat16, on the CPU,
                        // [panel][pairs of channels][decode_panel][2], a pair within one tap
  const void* bias;     // [panel][decode_panel]
  const void* context;  // a bias for each sample, (batch, panels, decode_panel), or null
  int64_t outputs;      // of the activation: a gate has twice as many sums, the second half of a
                        // panel's for its second half
  int64_t whole_row, first_row, row_step, row_phase, column_step, column_phase;
  DecodeSlot add, residual;  // seen at the layer's own position
  DecodeActivation activation;
  DecodeSlot out, activated;
  DecodeActivation activated_by;
};

enum class DecodeHead : int64_t { none, categorical, bernoulli, mixture };

// Draws `channels` channels at a position from `params`. `x` holds them from `first_channel` on;
// the value gets them at `value`, followed by a 1 if `ones`.
struct DecodeDraw {
  DecodeSlot params, value;
  int64_t channels, first_channel, ones;
  int64_t position;  // in x, and the noise's; -1: where the program is
  DecodeHead head;
  int64_t levels, mixtures;
};

// Layers begin, ..., end - 1, which do not look at each other; or draw `begin`; or the local
// features.
enum class DecodeStepKind : int64_t { layers, draw, features };
struct DecodeStep {
  DecodeStepKind kind;
  int64_t begin, end;
};

struct DecodeProgram {
  DType dtype, weight_dtype;
  const DecodeValue* values;
  const DecodeTap* taps;
  const DecodeLayer* layers;
  const DecodeDraw* draws;
  const DecodeStep* steps;
  int64_t num_steps;
  int64_t columns;
  DecodeSlot features;
  int64_t num_features;
  double log_scale_min;
};

// Runs a program from a cursor on: to the position `end`, or to the draw before which it stops.
struct DecodeRun {
  DecodeProgram program;
  int64_t batch;
  Team* team;
  int64_t position, step;  // the cursor
  int64_t end;
  bool stop_at_draw;
  const void* fed;  // (batch, channels) for the draw at the cursor, or null
  void* x;          // (batch, channels, positions): what is drawn, and what is given
  int64_t x_channels, x_positions;
  const uint8_t* keep;     // like x: where x is given; or null
  const int64_t* samples;  // (batch): the index of each in the noise
  const void* features;    // (batch, num_features, features_positions)
  int64_t features_positions;
  int64_t first_feature;  // the position of the first of them
  int64_t seed;
  double temperature;
  int64_t* cursor;  // where the run ended: position and step
};

// Outputs that a register tile makes at once: two vectors. In a gate's panel the second vector
// holds what gates the first.
inline int64_t decode_panel(int64_t element_size) {
  switch (cpu_level()) {
    case CpuLevel::v4:
      return 128 / element_size;
    case CpuLevel::v3:
      return 64 / element_size;
    default:
      return 32 / element_size;
  }
}

// On a GPU: sums in a panel, in every dtype, and the most channels of a strip. Each lane of a warp
// has one; a gate's second sums are in the upper half.
constexpr int decode_cuda_panel = 32;

// A tap for the GPU, or channels of one, with all that leads to its numbers.
struct DecodeStrip {
  DecodeValue value;
  int64_t row, column, channel, channels, depthwise;  // as in DecodeTap
  const void* weight;                                 // its first row in the layer's first panel
  int64_t panel_size;                                 // to the same row of the next panel
};

// A run on a GPU. All memory but the program's structs and the cursor is the device's. Kernels read
// there what changes from one position to the next, so that launches may be captured as a graph and
// replayed at any position where the same layers run.
struct DecodeCudaRun {
  DecodeRun run;              // without taps: a layer's are `strips` from its first_tap on
  const DecodeStrip* strips;  // on the device
  int64_t* position;          // where the run is; it moves on behind each position
  const int64_t* seed;
};

#pragma GCC visibility push(default)  // the Python module calls them
GMFAST_CPU_KERNEL(decode, DecodeRun);
void decode_cuda(const DecodeCudaRun& args, void* stream);
#pragma GCC visibility pop

}  // namespace gmfast
