#include "../args/rational_quadratic_spline.h"

#include "../common/parallel.h"
#include "../math/rational_quadratic_spline.h"
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
void copy_tile(const Grid& operand, const RationalQuadraticSpline& args, int64_t first, int count,
               int64_t bins, S* rows) {
  with_type(operand.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    for_each_run(first, count, args.columns, [&](Run run) {
      Image row;
      row.data = static_cast<T*>(operand.data) + run.sample / args.rows * operand.batch_stride +
                 run.sample % args.rows * operand.row_stride;
      row.channel_stride = operand.channel_stride;
      row.pixel_stride = operand.column_stride;
      run.sample = 0;
      copy_run<direction, T>(row, run, bins, rows);
    });
  });
}

// Whether b goes on where `count` bins of a end.
bool follows(const Grid& b, const Grid& a, int64_t count) {
  const int64_t size = element_size(a.dtype);
  return a.data && b.data == static_cast<char*>(a.data) + count * a.channel_stride * size &&
         a.dtype == b.dtype && a.batch_stride == b.batch_stride && a.row_stride == b.row_stride &&
         a.column_stride == b.column_stride && a.channel_stride == b.channel_stride;
}

// The same of widths, heights and derivatives, those that there are: at once where they are views
// of one tensor.
template <Copy direction, class S>
void copy_params(const Grid (&params)[3], const RationalQuadraticSpline& args, int64_t first,
                 int count, S* rows) {
  const int64_t bins[] = {args.bins, args.bins, args.raw_derivatives};
  for (int i = 0, next; i < 3; i = next) {
    int64_t joined = bins[i];
    for (next = i + 1; next < 3 && follows(params[next], params[i], joined); ++next) {
      joined += bins[next];
    }
    if (params[i].data) copy_tile<direction>(params[i], args, first, count, joined, rows);
    rows += joined * tile_pixels;
  }
}

// The parameters of a tile's elements, and what is made of them in place.
template <class S>
struct Bins {
  using V = Native<S>;
  const RationalQuadraticSpline& args;
  int64_t first_knot;  // whose slope is not fixed
  Tile<S> x, params;

  explicit Bins(const RationalQuadraticSpline& args)
      : args(args), first_knot(args.linear_tails ? 1 : 0), x(1), params(3 * args.bins + 1) {
    // What no element fills: lanes beyond the last, and the last knot where its slope is fixed.
    for (int i = 0; i < tile_pixels; ++i) x.row(0)[i] = 0;
    for (int64_t i = 0; i < (3 * args.bins + 1) * tile_pixels; ++i) params.row(0)[i] = 0;
  }

  S* width(int64_t k) { return params.row(k); }
  S* height(int64_t k) { return params.row(args.bins + k); }
  // Of knot k, anything where its slope is fixed.
  S* derivative(int64_t k) { return params.row(2 * args.bins + k - first_knot); }

  void load_elements(int64_t first, int count) {
    copy_tile<Copy::in>(args.x, args, first, count, 1, x.row(0));
    copy_params<Copy::in>({args.widths, args.heights, args.derivatives}, args, first, count,
                          params.row(0));
  }

  // Brings part `part` of `parts` of the parameters of a tile nearer while another is computed:
  // tensors that lie apart are streams in which each tile is a new page.
  void prefetch(int64_t first, int part, int parts) const {
    const int64_t numel = args.batch * args.elements;
    if (first >= numel || !worth_prefetching(3 * numel * args.bins * int64_t(sizeof(S)))) return;
    const int64_t bins[] = {args.bins, args.bins, args.raw_derivatives};
    const int64_t row = first / args.columns;
    int i = 0;
    for (const Grid* operand : {&args.widths, &args.heights, &args.derivatives}) {
      Image image;
      image.dtype = operand->dtype;
      image.channel_stride = operand->channel_stride;
      image.pixel_stride = operand->column_stride;
      const int64_t size = element_size(image.dtype);
      image.data =
          static_cast<char*>(operand->data) +
          (row / args.rows * operand->batch_stride + row % args.rows * operand->row_stride) * size;
      const int64_t count = bins[i++];
      // Short rows of halves are few lines to follow.
      if (!operand->data || (size == 2 && image.channel_stride == 1)) continue;
      prefetch_tile<false>(image, first % args.columns, tile_pixels, count, args.columns, part,
                           parts);
    }
  }
};

// Lanes of `bins` rows from `row` on become e^(row - max), and their sum is returned.
template <class V>
V exponentials(Scalar<V>* row, int bins) {
  V top = load<V>(row);
  for (int k = 1; k < bins; ++k) top = max(top, load<V>(row + k * tile_pixels));
  ExponentialSum<V> total;
  for (int k = 0; k < bins; ++k) {
    const V value = exp_nonpositive(load<V>(row + k * tile_pixels) - top);
    store(row + k * tile_pixels, value);
    total.add(value);
  }
  return total.value();
}

// An element's bin, and what its gradient needs besides.
template <class V>
struct Found {
  V x, at;
  SplineAxis<V> x_axis, y_axis;
  SplinePlace<V> place;
  SplineBin<V> bin;
};

template <bool inverse, class V>
GMFAST_HD Found<V> find(Bins<Scalar<V>>& bins, const Spline<V>& spline, int i) {
  const V x = load<V>(bins.x.row(0) + i), at = clamp_to(x, spline.bound);
  const SplineAxis<V> x_axis(exponentials<V>(bins.width(0) + i, spline.bins), spline.spread_width,
                             spline.bound, spline.least_width);
  const SplineAxis<V> y_axis(exponentials<V>(bins.height(0) + i, spline.bins), spline.spread_height,
                             spline.bound, spline.least_height);
  const SplinePlace<V> place = find_bin<inverse>(
      at, spline, x_axis, y_axis, [&](int k) { return load<V>(bins.width(k) + i); },
      [&](int k) { return load<V>(bins.height(k) + i); },
      [&](int k) { return load<V>(bins.derivative(k) + i); });
  return {x, at, x_axis, y_axis, place, bin_at(place, spline, x_axis, y_axis)};
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
          bins.prefetch(first + count, i / lanes<V>, tile_pixels / lanes<V>);
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
        const auto load_gradient = [&](const Grid& operand, Tile<S>& tile) {
          if (operand.data) copy_tile<Copy::in>(operand, args, first, count, 1, tile.row(0));
        };
        load_gradient(backward.grad_y, grad_y);
        load_gradient(backward.grad_log, grad_log);
        for (int i = 0; i < count; i += lanes<V>) {
          bins.prefetch(first + count, i / lanes<V>, tile_pixels / lanes<V>);
          const Found<V> found = find<inverse, V>(bins, spline, i);
          const SplineGradient<V> grad =
              spline_gradient<inverse>(found.x, found.at, found.bin, spline,
                                       load<V>(grad_y.row(0) + i), load<V>(grad_log.row(0) + i));
          const SplinePlace<V>& place = found.place;
          const SplineAxisGradient<V> by_width(found.x_axis, place.index, place.before_width,
                                               place.width, grad.left, grad.width);
          const SplineAxisGradient<V> by_height(found.y_axis, place.index, place.before_height,
                                                place.height, grad.below, grad.height);
          const V zero = splat<V>(0), next = place.index + splat<V>(1);
          const V by_raw0 = grad.slope0 * sigmoid(place.raw0);
          const V by_raw1 = grad.slope1 * sigmoid(place.raw1);
          for (int k = 0; k < spline.bins; ++k) {
            S *width = bins.width(k) + i, *height = bins.height(k) + i;
            store(width, by_width.by_raw(k, load<V>(width)));
            store(height, by_height.by_raw(k, load<V>(height)));
          }
          for (int64_t j = 0; j < args.raw_derivatives; ++j) {
            const V knot = splat<V>(S(j + bins.first_knot));
            store(bins.derivative(j + bins.first_knot) + i,
                  select<V>(knot == place.index, by_raw0, select<V>(knot == next, by_raw1, zero)));
          }
          store(bins.x.row(0) + i, grad.x);
        }
        if (backward.grad_x.data) {
          copy_tile<Copy::out>(backward.grad_x, args, first, count, 1, bins.x.row(0));
        }
        copy_params<Copy::out>(
            {backward.grad_widths, backward.grad_heights, backward.grad_derivatives}, args, first,
            count, bins.params.row(0));
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
