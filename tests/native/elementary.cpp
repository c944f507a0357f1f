// Elementary functions over arrays, for tests/math/test_elementary.py: at the SIMD level of the
// compile, as vectors and as scalars, and the same functions of the C library in long double.
#include "csrc/math/elementary.h"

#include <cmath>
#include <cstdint>

namespace {

using namespace gmfast;

template <class V>
V first(void (*pair)(V, V*, V*), V x) {
  V a, b;
  pair(x, &a, &b);
  return a;
}
template <class V>
V second(void (*pair)(V, V*, V*), V x) {
  V a, b;
  pair(x, &a, &b);
  return b;
}

template <class V, class T, class Function>
void map(const T* x, T* y, int64_t count, Function function) {
  int64_t i = 0;
  for (; i + lanes<V> <= count; i += lanes<V>) store(y + i, function(load<V>(x + i)));
  const int rest = int(count - i);
  if (rest > 0) store_partial(y + i, function(load_partial<V>(x + i, rest)), rest);
}

// sin(pi x), and with quarter = 1 cos(pi x).
long double reference_sinpi(double x, int quarter) {
  const double half_turns = std::rint(2 * x);
  const long double pi = 3.14159265358979323846264338327950288L;
  const long double r = pi * (static_cast<long double>(x) - half_turns / 2);
  const int quadrant = (int(std::fmod(half_turns, 4.0)) + 4 + quarter) % 4;
  const long double value = quadrant % 2 ? cosl(r) : sinl(r);
  return quadrant < 2 ? value : -value;
}

long double reference_softplus(long double x) {
  return x > 0 ? x + log1pl(expl(-x)) : log1pl(expl(x));
}

}  // namespace

// F(name, the function of x, the reference of X)
#define FUNCTIONS(F)                                                                 \
  F(exp, gmfast::exp(x), expl(X))                                                    \
  F(exp_nonpositive, gmfast::exp_nonpositive(x), expl(X))                            \
  F(expm1, gmfast::expm1(x), expm1l(X))                                              \
  F(exp_expm1, first<V>(gmfast::exp_expm1<V>, x), expl(X))                           \
  F(exp_expm1_nonpositive, first<V>(gmfast::exp_expm1_nonpositive<V>, x), expl(X))   \
  F(expm1_nonpositive, second<V>(gmfast::exp_expm1_nonpositive<V>, x), expm1l(X))    \
  F(log, gmfast::log(x), logl(X))                                                    \
  F(log_positive, gmfast::log_positive(x), logl(X))                                  \
  F(log1p, gmfast::log1p(x), log1pl(X))                                              \
  F(log1p_unit, gmfast::log1p_unit(x), log1pl(X))                                    \
  F(log1mexp, gmfast::log1mexp(x), X < 0.6L ? logl(-expm1l(-X)) : log1pl(-expl(-X))) \
  F(sigmoid, gmfast::sigmoid(x), 1 / (1 + expl(-X)))                                 \
  F(log_sigmoid, gmfast::log_sigmoid(x), -reference_softplus(-X))                    \
  F(softplus, gmfast::softplus(x), reference_softplus(X))                            \
  F(tanh, gmfast::tanh(x), tanhl(X))                                                 \
  F(sinpi, first<V>(gmfast::sincospi<V>, x), reference_sinpi(double(X), 0))          \
  F(cospi, second<V>(gmfast::sincospi<V>, x), reference_sinpi(double(X), 1))         \
  F(atan, gmfast::atan(x), atanl(X))                                                 \
  F(erfc, gmfast::erfc(x), erfcl(X))                                                 \
  F(log_erfc, gmfast::log_erfc(x), logl(erfcl(X)))

#define DEFINE_FOR(T, name, formula)                                             \
  extern "C" void name##_##T(const T* from, T* to, int64_t count, bool vector) { \
    auto function = [](auto x) {                                                 \
      using V = decltype(x);                                                     \
      return V(formula);                                                         \
    };                                                                           \
    if (vector) {                                                                \
      map<Native<T>>(from, to, count, function);                                 \
    } else {                                                                     \
      map<T>(from, to, count, function);                                         \
    }                                                                            \
  }

#define DEFINE(name, formula, reference)                                                          \
  DEFINE_FOR(float, name, formula)                                                                \
  DEFINE_FOR(double, name, formula)                                                               \
  /* The sum of `to` and `rest` is the result. */                                                 \
  extern "C" void name##_reference(const double* from, double* to, double* rest, int64_t count) { \
    for (int64_t i = 0; i < count; ++i) {                                                         \
      const long double X = from[i];                                                              \
      const long double value = reference;                                                        \
      to[i] = double(value);                                                                      \
      rest[i] = double(value - to[i]);                                                            \
    }                                                                                             \
  }

FUNCTIONS(DEFINE)
