// The vocabulary of csrc/math/simd.h over arrays, for tests/math/test_simd.py.
#include "csrc/math/simd.h"

#include <cstdint>

namespace {

using namespace gmfast;

// Through V, as whole vectors and then what is left.
template <class V, class From, class To>
void copy(const From* from, To* to, int64_t count) {
  int64_t i = 0;
  for (; i + lanes<V> <= count; i += lanes<V>) store(to + i, load<V>(from + i));
  store_partial(to + i, load_partial<V>(from + i, int(count - i)), int(count - i));
}

// Each row of the result is one function of x and y by lane, or one value in every lane.
template <class V>
void evaluate(const Scalar<V>* x_values, const Scalar<V>* y_values, Scalar<V>* rows) {
  const V x = load<V>(x_values), y = load<V>(y_values), one = splat<V>(1), zero = splat<V>(0);
  auto put = [&](V v) {
    store(rows, v);
    rows += lanes<V>;
  };
  auto flag = [&](bool b) { put(b ? one : zero); };
  put(min(x, y));
  put(max(x, y));
  put(abs(x));
  put(copysign(x, y));
  put(fma(x, y, one));
  put(sqrt(abs(x)));
  put(round(x));
  put(floor(x));
  put(convert<V>(truncate(x)));
  put(select<V>(x < y, x, y));
  put(select<V>(mask_or<Mask<V>>(x < y, mask_not<Mask<V>>(x < zero)), one, zero));
  put(from_bits<V>(bits(x)));
  put(iota<V>());
  put(splat<V>(reduce_add(x)));
  put(splat<V>(reduce_max(x)));
  flag(any<Mask<V>>(x < y));
  flag(all<Mask<V>>(x < y));
}

template <class V>
void transpose_array(const Scalar<V>* from, Scalar<V>* to) {
  V rows[lanes<V>];
  for (int i = 0; i < lanes<V>; ++i) rows[i] = load<V>(from + i * lanes<V>);
  transpose<V>(rows);
  for (int i = 0; i < lanes<V>; ++i) store(to + i * lanes<V>, rows[i]);
}

}  // namespace

#define COPY(name, From, To, C)                                                       \
  extern "C" void copy_##name(const From* from, To* to, int64_t count, bool vector) { \
    vector ? copy<Native<C>>(from, to, count) : copy<C>(from, to, count);             \
  }
COPY(float16_float32, Half, float, float)
COPY(float16_float64, Half, double, double)
COPY(bfloat16_float32, BFloat16, float, float)
COPY(bfloat16_float64, BFloat16, double, double)
COPY(float32_float16, float, Half, float)
COPY(float32_bfloat16, float, BFloat16, float)
COPY(float64_float16, double, Half, double)
COPY(float64_bfloat16, double, BFloat16, double)
COPY(float32_float32, float, float, float)
COPY(float32_float64, float, double, double)
COPY(float64_float32, double, float, double)
COPY(float64_float64, double, double, double)

#define EVALUATE(T)                                                               \
  extern "C" int lanes_##T(bool vector) { return vector ? lanes<Native<T>> : 1; } \
  extern "C" void evaluate_##T(const T* x, const T* y, T* rows, bool vector) {    \
    vector ? evaluate<Native<T>>(x, y, rows) : evaluate<T>(x, y, rows);           \
  }                                                                               \
  extern "C" void transpose_##T(const T* from, T* to) { transpose_array<Native<T>>(from, to); }
EVALUATE(float)
EVALUATE(double)
