// Decode programs: an autoregressive model as a list of layers that run for one position after
// another, each on the activations cached from earlier positions, so that nothing is computed
// twice. docs/decode.md is the primer; the words are those of the structs below.
//
// A *position* is a pixel of an image in raster order, or a sample of a sound, which is an image
// one column wide. A *value* is a feature map: what a layer, a draw or the local features write at
// every position, for every sample of the batch. Its last rows are kept in a *ring* buffer, as many
// as other layers look back. A layer computes
//
//   y = activation(bias + context + sum over taps of weight * value at the tap's offset + add)
//       + residual
//
// where a *tap* is one offset of a convolution's kernel, and stores y, an elementwise function of
// y, or both. The arguments of the activation are its *sums*; a gate has two for each output.
// Weights are packed in *panels*: the sums that one register tile (CPU) or one warp (GPU) computes
// at once.
//
// A layer runs at the positions whose row and column, modulo row_step and column_step, equal its
// *phase*: a layer at half resolution has steps of 2, and an upsampling is four layers, one for
// each phase. A layer that reads finished rows only runs for a whole row before the row's first
// pixel.
//
// At each position the program executes its *steps*: layers that are independent of each other, the
// loading of the local features, or a *draw*, which samples channels from the distribution that a
// value parametrizes, or takes given ones, and writes them where the layers of later positions (or
// of later colours) read them.
#pragma once

#include <cstdint>

#include "../common/kernel.h"
#include "../common/tensor.h"
#include "../math/simd.h"

namespace gmfast {

class Team;

// A value's ring. Row r of the value's grid is row r modulo `rows` of the ring; zeros pad both
// sides of a row. Strides count elements.
struct DecodeValue {
  void* data;     // row 0 of the ring, column 0 of the grid, sample 0, channel 0
  int64_t scale;  // the grid has every scale-th row and column of the image
  int64_t rows;
  int64_t row_stride, column_stride, sample_stride;  // column_stride 0: one column is kept
};

// Channels [channel, channel + channels) of a value, `row` rows and `column` columns of its grid
// from the layer's position (row 0 is its own, row -1 the one above).
struct DecodeTap {
  int64_t value, row, column, channel, channels;
  bool depthwise;  // output c sees channel c alone
};

// gate and glu take two sums a and b: tanh(a) * sigmoid(b) and a * sigmoid(b).
enum class DecodeActivation { none, relu, elu, silu, gate, glu, concat_elu };

// The channels of a value from `channel` on; value -1: none.
struct DecodeSlot {
  int64_t value, channel;
};

struct DecodeLayer {
  int64_t first_tap, taps;
  const void* weight;   // [panel][channels of all taps][decode_panel]; in bfloat16, on the CPU,
                        // [panel][pairs of channels][decode_panel][2], a pair within one tap
  const void* bias;     // [panel][decode_panel]
  const void* context;  // a bias per sample, [batch][panel][decode_panel], or null
  int64_t outputs;      // of the activation. A gate has twice as many sums: the second half of a
                        // panel holds the gates of the first
  bool whole_row;       // runs for all columns at once
  int64_t first_row, row_step, row_phase, column_step, column_phase;
  DecodeSlot add, residual;  // read at the layer's own position
  DecodeActivation activation;
  DecodeSlot out, activated;      // of y, and of activated_by(y)
  DecodeActivation activated_by;  // no gate
};

enum class DecodeHead { none, categorical, bernoulli, mixture };

// Draws `channels` channels at a position from the parameters in `params`, into DecodeRun::x from
// `first_channel` on and into the slot `value`, there followed by a 1 if `ones`.
struct DecodeDraw {
  DecodeSlot params, value;
  int64_t channels, first_channel;
  bool ones;
  int64_t position;  // index in x and in the noise; -1: the program's position
  DecodeHead head;
  int64_t levels, mixtures;
};

// Layers [begin, end), which are independent of each other; or draw `begin`; or the local features,
// which come with each position from outside.
enum class DecodeStepKind { layers, draw, features };
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
  int64_t columns;      // of the image
  DecodeSlot features;  // where the local features go
  int64_t num_features;
  double log_scale_min;
};

// Runs a program from its cursor to the position `end`, or to the next draw.
struct DecodeRun {
  DecodeProgram program;
  int64_t batch;
  Team* team;
  int64_t position, step;  // the cursor
  int64_t end;
  bool stop_at_draw;
  const void* fed;  // (batch, channels) for the draw at the cursor, or null
  void* x;          // (batch, channels, positions): drawn where it is not given
  int64_t x_channels, x_positions;
  const uint8_t* keep;     // as x, not 0 where x is given; or null
  const int64_t* samples;  // (batch,): each sample's index in the noise
  const void* features;    // (batch, num_features, features_positions)
  int64_t features_positions;
  int64_t first_feature;  // the position of features[..., 0]
  int64_t seed;
  double temperature;
  int64_t* cursor;  // out: the position and step where the run ended
};

// Sums in a panel on the CPU: two vectors, of which a gate's second holds the gates of the first.
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

// On a GPU: sums in a panel, in every dtype, and the most channels in a strip. Each lane of a warp
// has one sum; the gates of a gate's panel are in the upper half.
constexpr int decode_cuda_panel = 32;

// Up to decode_cuda_panel channels of a tap (all of a depthwise one), which one warp multiplies,
// with the addresses of its operands.
struct DecodeStrip {
  DecodeValue value;
  int64_t row, column, channel, channels;  // as in DecodeTap
  bool depthwise;
  const void* weight;  // its first row in the layer's first panel
  int64_t panel_size;  // elements from there to the same row of the next panel
};

// A run on a GPU. All memory but the program's structs and the cursor is the device's. Kernels read
// from there whatever changes between positions, so that launches can be captured as a graph and
// replayed at any position where the same layers run.
struct DecodeCudaRun {
  DecodeRun run;              // without taps: first_tap and taps of a layer index `strips`
  const DecodeStrip* strips;  // on the device
  int64_t* position;          // of the run; advanced on the device behind each position
  const int64_t* seed;
};

#pragma GCC visibility push(default)  // the Python module calls them
GMFAST_CPU_KERNEL(decode, DecodeRun);
void decode_cuda(const DecodeCudaRun& args, void* stream);
#pragma GCC visibility pop

}  // namespace gmfast
