// Pieces of both executors of decode programs: addresses in rings, activations, phases, draws.
#pragma once

#include "../args/decode.h"
#include "../math/concat_elu.h"
#include "../math/decode.h"
#include "../math/gated_activation.h"

namespace gmfast {
inline namespace GMFAST_LEVEL {

// n / d and n % d, without a division for d = 1, the common case.
GMFAST_HD int64_t fast_divide(int64_t n, int64_t d) { return d == 1 ? n : n / d; }
GMFAST_HD int64_t fast_modulo(int64_t n, int64_t d) { return d == 1 ? 0 : n % d; }

// Offset in elements from a value's data to sample 0 at (row, column) from a position.
GMFAST_HD int64_t decode_offset(const DecodeValue& value, int64_t position_row,
                                int64_t position_column, int64_t row = 0, int64_t column = 0) {
  // -rows < row <= 0: a tap stays within the ring, so the sum is not negative.
  const int64_t from_top = fast_divide(position_row, value.scale) + row + value.rows;
  const int64_t from_left = fast_divide(position_column, value.scale) + column;
  return fast_modulo(from_top, value.rows) * value.row_stride + from_left * value.column_stride;
}

// The activation of a sum a; b is its gate.
template <class V>
GMFAST_HD V decode_activation(DecodeActivation activation, V a, V b) {
  switch (activation) {
    case DecodeActivation::relu:
      return max(splat<V>(0), a);
    case DecodeActivation::elu:
      return select<V>(a > splat<V>(0), a, expm1(min(splat<V>(0), a)));
    case DecodeActivation::silu:
      return a * sigmoid(a);
    case DecodeActivation::gate:
      return gated_activation(a, b);
    case DecodeActivation::glu:
      return a * sigmoid(b);
    default:
      return a;
  }
}

constexpr bool is_gate(DecodeActivation activation) {
  return activation == DecodeActivation::gate || activation == DecodeActivation::glu;
}

// Whether a layer runs at a position; a layer of whole rows runs at the first position of a row.
GMFAST_HD bool decode_runs(const DecodeLayer& layer, int64_t row, int64_t column) {
  if (row < layer.first_row || fast_modulo(row, layer.row_step) != layer.row_phase) return false;
  return layer.whole_row ? column == 0
                         : fast_modulo(column, layer.column_step) == layer.column_phase;
}

// Executes a draw for sample b: takes the fed or kept channels, or draws them; see DecodeDraw.
template <class V>
GMFAST_HD void decode_draw(const DecodeRun& run, const DecodeDraw& draw, int64_t row,
                           int64_t column, bool fed, int64_t b) {
  using S = Scalar<V>;
  const DecodeProgram& program = run.program;
  const int64_t at = row * program.columns + column;
  const int64_t position = draw.position < 0 ? at : draw.position;
  const DecodeValue& to = program.values[draw.value.value];
  S* value = static_cast<S*>(to.data) + decode_offset(to, row, column) + b * to.sample_stride +
             draw.value.channel;
  if (draw.ones) value[draw.channels] = S(1);
  if (fed) {
    for (int64_t c = 0; c < draw.channels; ++c) {
      value[c] = static_cast<const S*>(run.fed)[b * draw.channels + c];
    }
    return;
  }
  const int64_t first = (b * run.x_channels + draw.first_channel) * run.x_positions + position;
  S* x = static_cast<S*>(run.x) + first;
  const uint8_t* keep = run.keep ? run.keep + first : nullptr;
  bool given = keep != nullptr;
  for (int64_t c = 0; given && c < draw.channels; ++c) given = keep[c * run.x_positions];
  if (!given) {
    const DecodeValue& from = program.values[draw.params.value];
    const S* params = static_cast<const S*>(from.data) + decode_offset(from, row, column) +
                      b * from.sample_stride + draw.params.channel;
    const S temperature = S(run.temperature);
    S uniform[4];
    position_uniforms({uint64_t(run.seed), uint32_t(run.samples[b]), 0}, uint64_t(position),
                      uniform);
    if (draw.head == DecodeHead::mixture) {
      const Classes<S> classes(int(draw.levels), program.log_scale_min);
      if (draw.channels == 3) {
        S drawn[3];
        draw_mixture<V, 3>(params, draw.mixtures, uniform, temperature, classes, drawn);
        for (int c = 0; c < 3; ++c) x[c * run.x_positions] = drawn[c];
      } else {
        S drawn[1];
        draw_mixture<V, 1>(params, draw.mixtures, uniform, temperature, classes, drawn);
        x[0] = drawn[0];
      }
    } else {
      S own = uniform[0];
      GMFAST_UNROLL
      for (int c = 1; c < 4; ++c) own = draw.first_channel == c ? uniform[c] : own;
      x[0] =
          draw_level<V>(params, draw.head == DecodeHead::bernoulli, draw.levels, own, temperature);
    }
  }
  for (int64_t c = 0; c < draw.channels; ++c) value[c] = x[c * run.x_positions];
}

}  // namespace GMFAST_LEVEL
}  // namespace gmfast
