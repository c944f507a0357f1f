#include "../rational_quadratic_spline.h"

#include "../math/rational_quadratic_spline.h"
#include "parallel.h"
#include "reduce.h"
#include "scratch.h"
#include "tile.h"

namespace gmfast {
inline namespace GMFAST_LEVEL {
namespace {

// ---------------------------------------------------------------------------------------------
// What a thread takes at a time: a piece of one sample, or several whole samples where they are
// small. Which elements are summed together thus depends on the sample's size alone.
// ---------------------------------------------------------------------------------------------

constexpr int64_t unit_elements = 4 * tile_pixels;

struct Units {
  int64_t elements, pieces, samples, count;  // of a sample, of a sample, of a unit, in all

  explicit Units(const RationalQuadraticSpline& args)
      : elements(args.elements),
        pieces((elements + unit_elements - 1) / unit_elements),
        samples(pieces > 1 ? 1 : unit_elements / (elements > 0 ? elements : 1)),
        count(elements == 0 ? 0
              : pieces > 1  ? args.batch * pieces
                            : (args.batch + samples - 1) / samples),
        numel(args.batch * elements) {}

  // The first element, counted through the batch, and the one behind the last.
  int64_t first(int64_t unit) const {
    return pieces > 1 ? unit / pieces * elements + unit % pieces * unit_elements
                      : unit * samples * elements;
  }
  int64_t end(int64_t unit) const {
    const int64_t most = first(unit) + (pieces > 1 ? unit_elements : samples * elements);
    const int64_t end = pieces > 1 ? (unit / pieces + 1) * elements : numel;
    return most < end ? most : end;
  }

 private:
  int64_t numel;
};

// ---------------------------------------------------------------------------------------------
// Operands in and out of tiles
// ---------------------------------------------------------------------------------------------

// Between `count` elements from number `first` on, with `bins` numbers each, and rows of a tile.
template <Copy direction, class S>
void copy_tile(const SplineOperand& operand, const RationalQuadraticSpline& args, int64_t first,
               int count, int64_t bins, S* rows) {
  with_type(operand.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    for_each_run(first, count, args.pixels, [&](Run run) {
      Image group;
      group.data = static_cast<T*>(operand.data) + run.sample / args.groups * operand.batch_stride +
                   run.sample % args.groups * operand.group_stride;
      group.channel_stride = operand.bin_stride;
      group.pixel_stride = operand.pixel_stride;
      run.sample = 0;
      copy_run<direction, T>(group, run, bins, rows);
    });
  });
}

// The parameters of a tile's elements, and what is made of them in place.
template <class S>
struct Bins {
  using V = Native<S>;
  const RationalQuadraticSpline& args;
  Tile<S> x, widths, heights, derivatives;
  S* raw_derivatives;  // the rows of those that there are; row k of `derivatives` is knot k

  explicit Bins(const RationalQuadraticSpline& args)
      : args(args),
        x(1),
        widths(args.bins),
        heights(args.bins),
        derivatives(args.bins + 1),
        raw_derivatives(derivatives.row(args.linear_tails ? 1 : 0)) {
    // What no element fills: lanes beyond the last, and knots whose slope is fixed.
    const auto clear = [](S* row, int64_t rows) {
      for (int64_t i = 0; i < rows * tile_pixels; ++i) row[i] = 0;
    };
    clear(x.row(0), 1);
    clear(widths.row(0), args.bins);
    clear(heights.row(0), args.bins);
    clear(derivatives.row(0), args.bins + 1);
  }

  void load_elements(int64_t first, int count) {
    copy_tile<Copy::in>(args.x, args, first, count, 1, x.row(0));
    copy_tile<Copy::in>(args.widths, args, first, count, args.bins, widths.row(0));
    copy_tile<Copy::in>(args.heights, args, first, count, args.bins, heights.row(0));
    copy_tile<Copy::in>(args.derivatives, args, first, count, args.raw_derivatives,
                        raw_derivatives);
  }
};

// Lanes i.. of `rows` become e^(row - max), and their sum is returned.
template <class V>
V exponentials(Tile<Scalar<V>>& rows, int bins, int i) {
  V top = load<V>(rows.row(0) + i), total = splat<V>(0);
  for (int k = 1; k < bins; ++k) top = max(top, load<V>(rows.row(k) + i));
  for (int k = 0; k < bins; ++k) {
    const V value = exp_nonpositive(load<V>(rows.row(k) + i) - top);
    store(rows.row(k) + i, value);
    total += value;
  }
  return total;
}

// An element's bin, and what its gradient needs besides.
template <class V>
struct Found {
  V x, at, total_width, total_height;
  SplineAxis<V> x_axis, y_axis;
  SplinePlace<V> place;
  SplineBin<V> bin;
};

template <bool inverse, class V>
GMFAST_HD Found<V> find(Bins<Scalar<V>>& bins, const Spline<V>& spline, int i) {
  Found<V> found;
  found.x = load<V>(bins.x.row(0) + i);
  found.at = clamp_to(found.x, spline.bound);
  found.total_width = exponentials<V>(bins.widths, spline.bins, i);
  found.total_height = exponentials<V>(bins.heights, spline.bins, i);
  const auto axis = [&](Scalar<V> spread, V total, Scalar<V> least) {
    return SplineAxis<V>{quotient(splat<V>(spread), total), spline.bound, least};
  };
  found.x_axis = axis(spline.spread_width, found.total_width, spline.least_width);
  found.y_axis = axis(spline.spread_height, found.total_height, spline.least_height);
  found.place = find_bin<inverse>(
      found.at, spline, found.x_axis, found.y_axis,
      [&](int k) { return load<V>(bins.widths.row(k) + i); },
      [&](int k) { return load<V>(bins.heights.row(k) + i); },
      [&](int k) { return load<V>(bins.derivatives.row(k) + i); });
  found.bin = bin_at(found.place, spline, found.x_axis, found.y_axis);
  return found;
}

template <class V>
Spline<V> spline_of(const RationalQuadraticSpline& args) {
  return Spline<V>(args.bins, args.linear_tails, args.bound, args.min_bin_width,
                   args.min_bin_height, args.min_derivative);
}

constexpr int64_t units_of_a_thread = 4;  // at least: as long as it takes to wake one

template <class S, bool inverse>
void spline(const RationalQuadraticSpline& args) {
  using V = Native<S>;
  const Units units(args);
  const Spline<V> spline = spline_of<V>(args);
  S* log_det = static_cast<S*>(args.log_det);
  const bool in_pieces = log_det && units.pieces > 1;
  Scratch<double> partial(in_pieces ? units.count : 0);
  parallel_for(units.count, units_of_a_thread, [&](int64_t begin, int64_t end) {
    Bins<S> bins(args);
    Tile<S> y(1);
    alignas(64) S logs[unit_elements];
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t unit_first = units.first(unit), unit_end = units.end(unit);
      for (int64_t first = unit_first; first < unit_end; first += tile_pixels) {
        const int count = int(unit_end - first < tile_pixels ? unit_end - first : tile_pixels);
        bins.load_elements(first, count);
        for (int i = 0; i < count; i += lanes<V>) {
          const Found<V> found = find<inverse, V>(bins, spline, i);
          V log;
          store(y.row(0) + i, spline_value<inverse>(found.x, found.at, found.bin, spline, log));
          store(logs + (first - unit_first) + i, log);
        }
        copy_tile<Copy::out>(args.y, args, first, count, 1, y.row(0));
      }
      const int64_t count = unit_end - unit_first;
      if (args.log_derivative) {
        __builtin_memcpy(static_cast<S*>(args.log_derivative) + unit_first, logs,
                         count * sizeof(S));
      }
      if (in_pieces) {
        partial.get()[unit] = sum(logs, count);
      } else if (log_det) {
        for (int64_t i = 0; i < count; i += units.elements) {
          log_det[(unit_first + i) / units.elements] = S(sum(logs + i, units.elements));
        }
      }
    }
  });
  if (log_det && (in_pieces || units.elements == 0)) {
    for (int64_t b = 0; b < args.batch; ++b) {
      log_det[b] = S(sum(partial.get() + b * units.pieces, units.pieces));
    }
  }
}

template <class S, bool inverse>
void spline_backward(const RationalQuadraticSplineBackward& backward) {
  using V = Native<S>;
  const RationalQuadraticSpline& args = backward.forward;
  const Units units(args);
  const Spline<V> spline = spline_of<V>(args);
  parallel_for(units.count, units_of_a_thread, [&](int64_t begin, int64_t end) {
    Bins<S> bins(args);
    Tile<S> grad_y(1), grad_log(1);
    for (int i = 0; i < tile_pixels; ++i) grad_y.row(0)[i] = grad_log.row(0)[i] = 0;
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t unit_end = units.end(unit);
      for (int64_t first = units.first(unit); first < unit_end; first += tile_pixels) {
        const int count = int(unit_end - first < tile_pixels ? unit_end - first : tile_pixels);
        bins.load_elements(first, count);
        const auto load_gradient = [&](const SplineOperand& operand, Tile<S>& tile) {
          if (operand.data) copy_tile<Copy::in>(operand, args, first, count, 1, tile.row(0));
        };
        load_gradient(backward.grad_y, grad_y);
        load_gradient(backward.grad_log, grad_log);
        for (int i = 0; i < count; i += lanes<V>) {
          const Found<V> found = find<inverse, V>(bins, spline, i);
          const SplineGradient<V> grad =
              spline_gradient<inverse>(found.x, found.at, found.bin, spline,
                                       load<V>(grad_y.row(0) + i), load<V>(grad_log.row(0) + i));
          const SplinePlace<V>& place = found.place;
          const SplineAxisGradient<V> by_width(found.x_axis, found.total_width, place.index,
                                               place.before_width, place.width, grad.left,
                                               grad.width);
          const SplineAxisGradient<V> by_height(found.y_axis, found.total_height, place.index,
                                                place.before_height, place.height, grad.below,
                                                grad.height);
          const V zero = splat<V>(0), next = place.index + splat<V>(1);
          const V by_raw0 = grad.slope0 * sigmoid(place.raw0);
          const V by_raw1 = grad.slope1 * sigmoid(place.raw1);
          for (int k = 0; k <= spline.bins; ++k) {
            const V knot = splat<V>(S(k));
            store(bins.derivatives.row(k) + i,
                  select<V>(knot == place.index, by_raw0, select<V>(knot == next, by_raw1, zero)));
            if (k == spline.bins) break;
            S *width = bins.widths.row(k) + i, *height = bins.heights.row(k) + i;
            store(width, by_width.by_raw(k, load<V>(width)));
            store(height, by_height.by_raw(k, load<V>(height)));
          }
          store(bins.x.row(0) + i, grad.x);
        }
        const auto store_gradient = [&](const SplineOperand& operand, int64_t rows, S* from) {
          if (operand.data) copy_tile<Copy::out>(operand, args, first, count, rows, from);
        };
        store_gradient(backward.grad_x, 1, bins.x.row(0));
        store_gradient(backward.grad_widths, args.bins, bins.widths.row(0));
        store_gradient(backward.grad_heights, args.bins, bins.heights.row(0));
        store_gradient(backward.grad_derivatives, args.raw_derivatives, bins.raw_derivatives);
      }
    }
  });
}

}  // namespace
}  // namespace GMFAST_LEVEL

GMFAST_DEFINE_CPU_KERNEL(rational_quadratic_spline, RationalQuadraticSpline) {
  if (args.compute() == DType::float64) {
    args.inverse ? spline<double, true>(args) : spline<double, false>(args);
  } else {
    args.inverse ? spline<float, true>(args) : spline<float, false>(args);
  }
}

GMFAST_DEFINE_CPU_KERNEL(rational_quadratic_spline_backward, RationalQuadraticSplineBackward) {
  if (args.forward.compute() == DType::float64) {
    args.forward.inverse ? spline_backward<double, true>(args)
                         : spline_backward<double, false>(args);
  } else {
    args.forward.inverse ? spline_backward<float, true>(args) : spline_backward<float, false>(args);
  }
}

}  // namespace gmfast
