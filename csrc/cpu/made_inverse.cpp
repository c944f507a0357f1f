#include "../args/made_inverse.h"

#include <algorithm>

#include "../common/parallel.h"
#include "../math/made_inverse.h"
#include "scratch.h"
#include "tile.h"

namespace gmfast {
inline namespace GMFAST_LEVEL {
namespace {

template <class S>
MadeNet<S> net_of(const MadeLayers& layers, bool transposed) {
  MadeNet<S> net;
  net.steps = layers.steps;
  net.inputs = layers.inputs;
  net.outputs = layers.outputs;
  net.layers = layers.layers;
  net.transposed = transposed;
  for (int64_t i = 0; i <= layers.layers; ++i) {
    net.weights[i] = static_cast<const S*>(layers.weights[i]);
    if (i < layers.layers) net.units[i] = layers.units[i];
  }
  net.direct = static_cast<const S*>(layers.direct);
  return net;
}

template <class S>
int64_t units_of(const MadeNet<S>& net) {
  int64_t units = 0;
  for (int64_t i = 0; i < net.layers; ++i) units += net.units[i];
  return units;
}

// Rows [first, first + count) of a matrix, a lane each, R vectors to a column; lanes beyond are 0.
template <int R, class V>
void load_rows(const void* matrix, int64_t columns, int64_t first, int64_t count, V* to) {
  using S = Scalar<V>;
  constexpr int width = R * lanes<V>;
  const S* from = static_cast<const S*>(matrix) + first * columns;
  S* lane = reinterpret_cast<S*>(to);
  if (count < width) std::fill(lane, lane + columns * width, S(0));
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t c = 0; c < columns; ++c) lane[c * width + i] = from[i * columns + c];
  }
}

template <int R, class V>
void store_rows(const V* from, int64_t columns, int64_t first, int64_t count, void* matrix) {
  using S = Scalar<V>;
  constexpr int width = R * lanes<V>;
  S* to = static_cast<S*>(matrix) + first * columns;
  const S* lane = reinterpret_cast<const S*>(from);
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t c = 0; c < columns; ++c) to[i * columns + c] = lane[c * width + i];
  }
}

// Samples [first, first + count) of the inverse, count up to R·lanes. Where a sample lies in a
// block does not change its bits.
template <int R, class V>
void invert(const MadeInverse& args, const MadeNet<Scalar<V>>& net, int64_t first, int64_t count,
            V* scratch) {
  using S = Scalar<V>;
  const int64_t units = units_of(net), outputs = net.steps * net.outputs;
  V* values = scratch;
  V* hidden = values + net.steps * R;
  V* results = hidden + units * R;
  V* noise = results + net.outputs * R;
  V* offsets = noise + net.steps * R;
  load_rows<R>(args.z, net.steps, first, count, noise);
  const S* shared = static_cast<const S*>(args.offsets);
  if (args.offsets_stride) load_rows<R>(args.offsets, units + outputs, first, count, offsets);
  const auto add_offset = [&](int64_t number, V(&sum)[R]) {
    for (int r = 0; r < R; ++r)
      sum[r] += args.offsets_stride ? offsets[number * R + r] : splat<V>(shared[number]);
  };
  int64_t before[made_max_layers] = {};
  for (int64_t i = 1; i < net.layers; ++i) before[i] = before[i - 1] + net.units[i - 1];
  const auto activation = MadeActivation(args.activation);
  const auto map = ScaleMap(args.scale_map);
  const Coupling<V> inverse(true, false, args.clamp);
  V log_det[R] = {};
  made_sweep<R>(
      net, values, hidden, results, R,
      [&](int64_t layer, int64_t unit, V(&sum)[R]) {
        add_offset(before[layer] + unit, sum);
        for (int r = 0; r < R; ++r) sum[r] = made_activation(activation, sum[r]);
      },
      [&](int64_t s, const V* numbers) {
        V shift[R], scale[R];
        for (int r = 0; r < R; ++r) {
          shift[r] = numbers[r];
          scale[r] = numbers[R + r];
        }
        add_offset(units + 2 * s, shift);
        add_offset(units + 2 * s + 1, scale);
        for (int r = 0; r < R; ++r) {
          const CouplingScale<V> by = made_scale(map, scale[r], inverse);
          values[s * R + r] = coupling(noise[s * R + r], shift[r], by, inverse);
          log_det[r] -= by.log_s;
        }
      });
  store_rows<R>(values, net.steps, first, count, args.x);
  store_rows<R>(log_det, 1, first, count, args.log_det);
}

template <int R, class V>
void solve(const MadeSolve& args, const MadeNet<Scalar<V>>& net, int64_t first, int64_t count,
           V* scratch) {
  const int64_t units = units_of(net), inputs = net.steps * net.inputs;
  V* values = scratch;
  V* hidden = values + inputs * R;
  V* results = hidden + units * R;
  V* grad = results + R;
  V* diagonal = grad + net.steps * R;
  V* partial = diagonal + net.steps * R;
  V* slopes = partial + inputs * R;
  load_rows<R>(args.grad, net.steps, first, count, grad);
  load_rows<R>(args.diagonal, net.steps, first, count, diagonal);
  load_rows<R>(args.partial, inputs, first, count, partial);
  load_rows<R>(args.slopes, units, first, count, slopes);
  int64_t before[made_max_layers] = {};
  for (int64_t i = 1; i < net.layers; ++i) before[i] = before[i - 1] + net.units[i - 1];
  made_sweep<R>(
      net, values, hidden, results, R,
      [&](int64_t layer, int64_t unit, V(&sum)[R]) {
        for (int r = 0; r < R; ++r) sum[r] *= slopes[(before[layer] + unit) * R + r];
      },
      [&](int64_t s, const V* numbers) {
        for (int r = 0; r < R; ++r) {
          const V v = (grad[s * R + r] - numbers[r]) / diagonal[s * R + r];
          grad[s * R + r] = v;
          for (int64_t i = s * net.inputs; i < (s + 1) * net.inputs; ++i)
            values[i * R + r] = v * partial[i * R + r];
        }
      });
  store_rows<R>(grad, net.steps, first, count, args.v);
}

// Calls body(std::integral_constant<int, R>, first, count, scratch) for all samples, in blocks of
// one or two vectors. `columns` is how much scratch a sample takes.
template <class V, class Body>
void for_each_block(int64_t batch, int64_t columns, const Body& body) {
  constexpr int width = 2 * lanes<V>;
  parallel_for((batch + width - 1) / width, 1, [&](int64_t begin, int64_t end) {
    const Scratch<V> scratch(2 * columns);
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * width, count = std::min<int64_t>(width, batch - first);
      if (count > lanes<V>) {
        body(std::integral_constant<int, 2>(), first, count, scratch.get());
      } else {
        body(std::integral_constant<int, 1>(), first, count, scratch.get());
      }
    }
  });
}

template <class Body>
void with_compute_type(DType dtype, const Body& body) {
  if (dtype == DType::float64) return body(static_cast<double*>(nullptr));
  body(static_cast<float*>(nullptr));
}

}  // namespace
}  // namespace GMFAST_LEVEL

GMFAST_DEFINE_CPU_KERNEL(made_inverse, MadeInverse) {
  with_compute_type(args.net.dtype, [&](auto* type) {
    using V = Native<std::remove_pointer_t<decltype(type)>>;
    const auto net = net_of<Scalar<V>>(args.net, false);
    const int64_t columns =
        2 * net.steps + 2 * units_of(net) + net.outputs + net.steps * net.outputs;
    for_each_block<V>(args.net.batch, columns,
                      [&](auto r, int64_t first, int64_t count, V* scratch) {
                        invert<decltype(r)::value>(args, net, first, count, scratch);
                      });
  });
}

GMFAST_DEFINE_CPU_KERNEL(made_solve, MadeSolve) {
  with_compute_type(args.net.dtype, [&](auto* type) {
    using V = Native<std::remove_pointer_t<decltype(type)>>;
    const auto net = net_of<Scalar<V>>(args.net, true);
    const int64_t columns = 2 * net.steps + 2 * units_of(net) + 1 + 2 * net.steps * net.inputs;
    for_each_block<V>(args.net.batch, columns,
                      [&](auto r, int64_t first, int64_t count, V* scratch) {
                        solve<decltype(r)::value>(args, net, first, count, scratch);
                      });
  });
}

}  // namespace gmfast
