#include "../args/affine_coupling.h"
#include "../math/affine_coupling.h"
#include "launch.h"
#include "sample_sum.h"
#include "types.h"

namespace gmfast {
namespace {

// Bound by memory: with C2 = C/2 an element of x moves 2 elements of x and y and 1 of parameters
// forward, 4 backward; float32 at 4.3 TB/s 2.8 and 4.7 ps. About 40 instructions for each of half
// the elements, of 105 that the multiprocessors issue meanwhile.
//
// A thread's item is a pack of 16 bytes of every operand, where all have one dtype and lie in one
// aligned run; elsewhere one element, of any strides and dtypes. Items beyond the transformed ones
// are copied.
struct CouplingItems {
  int64_t transformed, kept;  // of a sample

  GMFAST_HD int64_t total() const { return transformed + kept; }
};

// The elements of an item: where it lies in (rows, inner).
template <int N>
struct ItemPlace {
  int64_t sample, row, first;

  GMFAST_DEVICE ItemPlace(int64_t sample, int64_t item, int64_t rows, int64_t inner)
      : sample(sample), row(0), first(item * N) {
    if (N == 1 && rows > 1) {
      const bool shorter = (item | inner) <= INT32_MAX;  // a division
      row = shorter ? int64_t(uint32_t(item) / uint32_t(inner)) : item / inner;
      first = item - row * inner;
    }
  }

  GMFAST_DEVICE int64_t offset(const RowOperand& operand) const {
    return sample * operand.batch_stride + row * operand.row_stride + first * operand.inner_stride;
  }
};

// Absent operands read as 0.
template <class S, class T, int N>
GMFAST_DEVICE void load_item(const RowOperand& operand, const ItemPlace<N>& place, S (&values)[N]) {
  if (!operand.data) {
    GMFAST_UNROLL
    for (int i = 0; i < N; ++i) values[i] = 0;
  } else if constexpr (N > 1) {
    const Pack<T, N> pack =
        load_pack<N>(static_cast<const T*>(operand.data) + place.offset(operand));
    GMFAST_UNROLL
    for (int i = 0; i < N; ++i) values[i] = pack.template get<S>(i);
  } else {
    with_type<S>(operand.dtype, [&](auto* type) {
      using U = std::remove_pointer_t<decltype(type)>;
      values[0] = load_element<S>(static_cast<const U*>(operand.data) + place.offset(operand));
    });
  }
}

// What is not wanted is absent.
template <class S, class T, int N>
GMFAST_DEVICE void store_item(const RowOperand& operand, const ItemPlace<N>& place,
                              const S (&values)[N]) {
  if (!operand.data) return;
  if constexpr (N > 1) {
    Pack<T, N> pack;
    GMFAST_UNROLL
    for (int i = 0; i < N; ++i) pack.set(i, values[i]);
    store_pack(static_cast<T*>(operand.data) + place.offset(operand), pack);
  } else {
    with_type<S>(operand.dtype, [&](auto* type) {
      using U = std::remove_pointer_t<decltype(type)>;
      store_element(static_cast<U*>(operand.data) + place.offset(operand), values[0]);
    });
  }
}

// Makes of an item what the direction makes of it. Returns the sum of log s.
template <ScaleMap map, bool backwards, class S, class T, int N>
GMFAST_DEVICE double compute_item(const AffineCoupling& args, const Coupling<S>& c,
                                  const ItemPlace<N>& place, S grad_log_det) {
  S x[N], shift[N], a[N], mask[N], grad_y[N];
  load_item<S, T>(args.x, place, x);
  load_item<S, T>(args.shift, place, shift);
  load_item<S, T>(args.scale, place, a);
  load_item<S, T>(args.mask, place, mask);
  if constexpr (backwards) load_item<S, T>(args.grad_y, place, grad_y);
  double sum = 0;
  GMFAST_UNROLL
  for (int i = 0; i < N; ++i) {
    CouplingScale<S> scale = coupling_scale<map>(a[i], c);
    const bool passes = mask[i] != 0;
    if (passes) scale = {0, 1, 0}, shift[i] = 0;
    if constexpr (backwards) {
      S grad_x, grad_shift, grad_scale;
      coupling_backward(grad_y[i], grad_log_det, x[i], args.from_output, shift[i], scale, c, grad_x,
                        grad_shift, grad_scale);
      x[i] = grad_x;
      shift[i] = passes ? 0 : grad_shift;
      a[i] = grad_scale;
    } else {
      x[i] = coupling(x[i], shift[i], scale, c);
      sum += scale.log_s;
    }
  }
  if constexpr (backwards) {
    store_item<S, T>(args.grad_x, place, x);
    store_item<S, T>(args.grad_shift, place, shift);
    store_item<S, T>(args.grad_scale, place, a);
  } else {
    store_item<S, T>(args.y, place, x);
  }
  return sum;
}

template <class S, class T, int N, bool backwards>
__global__ void __launch_bounds__(sample_sum_threads, 2)
    coupling_kernel(AffineCoupling args, CouplingItems items, SampleSum sum) {
  const SampleShare share(sum);
  const Coupling<S> c(args.inverse, args.shift_first, args.clamp);
  S grad_log_det = 0;
  if (backwards && args.grad_log_det && share.first < share.end) {
    const int64_t i = share.sample * args.grad_log_det_stride;
    grad_log_det = args.grad_log_det_dtype == DType::float64
                       ? S(static_cast<const double*>(args.grad_log_det)[i])
                       : S(static_cast<const float*>(args.grad_log_det)[i]);
  }
  double partial = 0;
  for (int64_t item = share.first; item < share.end; item += share.step) {
    if (item >= items.transformed) {
      const ItemPlace<N> place(share.sample, item - items.transformed, args.kept_rows,
                               args.kept_inner);
      S values[N];
      load_item<S, T>(backwards ? args.kept_grad_y : args.kept_x, place, values);
      store_item<S, T>(backwards ? args.kept_grad_x : args.kept_y, place, values);
      continue;
    }
    const ItemPlace<N> place(share.sample, item, args.rows, args.inner);
    const auto compute = [&](auto constant) {
      partial +=
          compute_item<decltype(constant)::value, backwards, S, T, N>(args, c, place, grad_log_det);
    };
    switch (args.map) {
      case ScaleMap::exp:
        compute(std::integral_constant<ScaleMap, ScaleMap::exp>{});
        break;
      case ScaleMap::sigmoid:
        compute(std::integral_constant<ScaleMap, ScaleMap::sigmoid>{});
        break;
      case ScaleMap::tanh:
        compute(std::integral_constant<ScaleMap, ScaleMap::tanh>{});
        break;
      case ScaleMap::atan:
        compute(std::integral_constant<ScaleMap, ScaleMap::atan>{});
        break;
      case ScaleMap::softclip:
        compute(std::integral_constant<ScaleMap, ScaleMap::softclip>{});
        break;
      default:
        compute(std::integral_constant<ScaleMap, ScaleMap::none>{});
    }
  }
  if constexpr (!backwards) {
    sum_of_sample(sum, share, partial, [&](double total) {
      static_cast<S*>(args.log_det)[share.sample] = S(args.inverse ? -total : total);
    });
  }
}

// Whether packs of N elements of `dtype` cover every operand.
bool packed(const AffineCoupling& args, DType dtype, int64_t N) {
  const bool whole = args.rows == 1 && args.inner % N == 0 &&
                     args.kept_rows * args.kept_inner % N == 0 &&
                     (args.kept_rows == 1 || args.kept_inner * args.kept_rows == 0);
  bool all = whole;
  for (const RowOperand* o : {&args.x, &args.kept_x, &args.shift, &args.scale, &args.mask, &args.y,
                              &args.kept_y, &args.grad_y, &args.kept_grad_y, &args.grad_x,
                              &args.kept_grad_x, &args.grad_shift, &args.grad_scale}) {
    if (!o->data) continue;
    all = all && o->dtype == dtype && o->inner_stride == 1 && o->batch_stride % N == 0 &&
          reinterpret_cast<uintptr_t>(o->data) % 16 == 0;
  }
  return all;
}

SampleSum sum_of(const AffineCoupling& args, int64_t N) {
  SampleSum sum(args.batch, (args.rows * args.inner + args.kept_rows * args.kept_inner) / N,
                coupling_items);
  sum.scratch = args.scratch;
  return sum;
}

template <class S, class T, int N, bool backwards>
void launch_coupling(const AffineCoupling& args, void* stream) {
  const CouplingItems items{args.rows * args.inner / N, args.kept_rows * args.kept_inner / N};
  const SampleSum sum = sum_of(args, N);
  if (backwards) {
    launch(coupling_kernel<S, T, N, backwards>, sum.blocks(), sample_sum_threads, 0, stream, args,
           items, sum);
  } else {
    launch_sample_sum(coupling_kernel<S, T, N, backwards>, sum, stream, args, items);
  }
}

template <class S, bool backwards>
void run(const AffineCoupling& args, void* stream) {
  bool done = false;
  with_type<S>(args.x.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    if constexpr (std::is_same<Compute<T>, S>::value) {
      constexpr int N = pack_elements<T>;
      if (!packed(args, args.x.dtype, N)) return;
      launch_coupling<S, T, N, backwards>(args, stream);
      done = true;
    }
  });
  if (!done) launch_coupling<S, S, 1, backwards>(args, stream);
}

}  // namespace

void affine_coupling_cuda(const AffineCoupling& args, void* stream) {
  args.compute == DType::float64 ? run<double, false>(args, stream)
                                 : run<float, false>(args, stream);
}

void affine_coupling_backward_cuda(const AffineCoupling& args, void* stream) {
  args.compute == DType::float64 ? run<double, true>(args, stream) : run<float, true>(args, stream);
}

}  // namespace gmfast
