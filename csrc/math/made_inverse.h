// A masked autoencoder (gmfast/nn/made.py), one value after another: each weight is used once, so
// that all steps together cost one pass of the network, where D passes would compute everything D
// times.
//
// Lanes are samples. A unit is computed at the step where the last of what it may see has become
// known, which is a prefix of the layer below, because units come in the order of their degrees.
#pragma once

#include <cstdint>

#include "affine_coupling.h"
#include "elementary.h"
#include "simd.h"

namespace gmfast {
inline namespace GMFAST_LEVEL {

enum class MadeActivation { relu, tanh, elu, silu };

constexpr int made_max_layers = 16;

// The network, its values and what is said about them in the order of the steps, weights (to,
// from).
template <class S>
struct MadeNet {
  int64_t steps = 0;
  int64_t inputs = 1, outputs = 1;  // numbers at each step: that become known, that are computed
  int64_t layers = 0;               // hidden ones
  int64_t units[made_max_layers] = {};
  const S* weights[made_max_layers + 1] = {};
  const S* direct = nullptr;  // null where the input does not reach the output directly
  // The gradient's direction: values come from the last to the first, and so do units.
  bool transposed = false;

  // How many units of a layer are complete at a step; all see the same degrees.
  GMFAST_HD int64_t known(int64_t layer, int64_t step) const {
    const int64_t span = steps > 1 ? steps - 1 : 1;
    if (transposed) return units[layer] - ((steps - 1 - step) * units[layer] + span - 1) / span;
    return (step * units[layer] + span - 1) / span;
  }
};

// sums[u] += the products of row u of `weights` and the first `count` numbers. `stride` lies
// between numbers, R vectors each. The order of the additions depends on count alone.
template <int U, int R, class V>
GMFAST_HD void made_products(const Scalar<V>* weights, int64_t row, const V* numbers,
                             int64_t stride, int64_t count, V (&sums)[U][R]) {
  constexpr int J = U >= 4 ? 1 : 4 / U;  // chains enough to hide the latency of an addition
  V partial[J][U][R];
  GMFAST_UNROLL
  for (int j = 0; j < J; ++j) {
    GMFAST_UNROLL
    for (int u = 0; u < U; ++u) {
      GMFAST_UNROLL
      for (int r = 0; r < R; ++r) partial[j][u][r] = j ? splat<V>(0) : sums[u][r];
    }
  }
  int64_t i = 0;
  for (; i + J <= count; i += J) {
    GMFAST_UNROLL
    for (int j = 0; j < J; ++j) {
      GMFAST_UNROLL
      for (int u = 0; u < U; ++u) {
        const V weight = splat<V>(weights[u * row + i + j]);
        GMFAST_UNROLL
        for (int r = 0; r < R; ++r)
          partial[j][u][r] = fma(weight, numbers[(i + j) * stride + r], partial[j][u][r]);
      }
    }
  }
  for (; i < count; ++i) {
    GMFAST_UNROLL
    for (int u = 0; u < U; ++u) {
      const V weight = splat<V>(weights[u * row + i]);
      GMFAST_UNROLL
      for (int r = 0; r < R; ++r)
        partial[0][u][r] = fma(weight, numbers[i * stride + r], partial[0][u][r]);
    }
  }
  GMFAST_UNROLL
  for (int u = 0; u < U; ++u) {
    GMFAST_UNROLL
    for (int r = 0; r < R; ++r) {
      V sum = partial[0][u][r];
      GMFAST_UNROLL
      for (int j = 1; j < J; ++j) sum += partial[j][u][r];
      sums[u][r] = sum;
    }
  }
}

// Calls body(first, std::integral_constant<int, U>) on groups of 4, 2 or 1 units.
template <class Body>
GMFAST_HD void made_groups(int64_t begin, int64_t end, const Body& body) {
  int64_t u = begin;
  for (; u + 4 <= end; u += 4) body(u, std::integral_constant<int, 4>());
  if (u + 2 <= end) {
    body(u, std::integral_constant<int, 2>());
    u += 2;
  }
  if (u < end) body(u, std::integral_constant<int, 1>());
}

// Runs all steps. unit(layer, number, V (&sum)[R]) turns a sum over what lies below into the unit's
// value; step(s, results) reads what is computed at step s, `outputs` times R, and puts what
// becomes known by it into `values`, which holds `inputs` times R for each step. `hidden` has room
// for the units of all layers, `results` for the outputs of a step.
template <int R, class V, class Unit, class Step>
GMFAST_HD void made_sweep(const MadeNet<Scalar<V>>& net, V* values, V* hidden, V* results,
                          int64_t stride, const Unit& unit, const Step& step) {
  for (int64_t s = 0; s < net.steps; ++s) {
    const V* below = values;
    V* own = hidden;
    int64_t seen = s * net.inputs, row = net.steps * net.inputs;
    for (int64_t layer = 0; layer < net.layers; ++layer) {
      const int64_t before = s ? net.known(layer, s - 1) : 0, now = net.known(layer, s);
      made_groups(before, now, [&](int64_t first, auto group) {
        constexpr int U = decltype(group)::value;
        V sums[U][R] = {};
        made_products<U, R>(net.weights[layer] + first * row, row, below, stride, seen, sums);
        for (int u = 0; u < U; ++u) {
          unit(layer, first + u, sums[u]);
          GMFAST_UNROLL
          for (int r = 0; r < R; ++r) own[(first + u) * stride + r] = sums[u][r];
        }
      });
      below = own;
      own += net.units[layer] * stride;
      seen = now;
      row = net.units[layer];
    }
    const int64_t columns = net.steps * net.inputs;
    made_groups(0, net.outputs, [&](int64_t first, auto group) {
      constexpr int U = decltype(group)::value;
      const int64_t output = s * net.outputs + first;
      V sums[U][R] = {};
      made_products<U, R>(net.weights[net.layers] + output * row, row, below, stride, seen, sums);
      if (net.direct) {
        made_products<U, R>(net.direct + output * columns, columns, values, stride, s * net.inputs,
                            sums);
      }
      for (int u = 0; u < U; ++u) {
        GMFAST_UNROLL
        for (int r = 0; r < R; ++r) results[(first + u) * stride + r] = sums[u][r];
      }
    });
    step(s, results);
  }
}

template <class V>
GMFAST_HD V made_activation(MadeActivation kind, V x) {
  switch (kind) {
    case MadeActivation::relu:
      return max(x, splat<V>(0));
    case MadeActivation::tanh:
      return tanh(x);
    case MadeActivation::elu:
      return select<V>(x > splat<V>(0), x, expm1(min(x, splat<V>(0))));
    default:
      return x * sigmoid(x);
  }
}

// The scale of the affine inverse: log s of the raw number a, and 1/s.
template <class V>
GMFAST_HD CouplingScale<V> made_scale(ScaleMap map, V a, const Coupling<V>& inverse) {
  switch (map) {
    case ScaleMap::exp:
      return coupling_scale<ScaleMap::exp>(a, inverse);
    case ScaleMap::sigmoid:
      return coupling_scale<ScaleMap::sigmoid>(a, inverse);
    case ScaleMap::tanh:
      return coupling_scale<ScaleMap::tanh>(a, inverse);
    case ScaleMap::atan:
      return coupling_scale<ScaleMap::atan>(a, inverse);
    default:
      return coupling_scale<ScaleMap::softclip>(a, inverse);
  }
}

}  // namespace GMFAST_LEVEL
}  // namespace gmfast
