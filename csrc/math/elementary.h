// Elementary functions for every V of simd.h: the same branch-free formula for a scalar, a CUDA
// thread and a vector.
//
// Largest errors in units in the last place of the exact result, at any SIMD level (the tests
// assert this very table). Levels, and a scalar and a vector of one level, differ within these
// bounds: one multiplies and adds in one rounding where another takes two.
//
//   function                where                                      float  double
//   exp                     the result is normal                         1.2     1.2
//   exp_nonpositive         x <= 0, the result is normal                 1.2     1.2
//   exp_expm1               e^x, above 1.5 times the smallest normal     1.2     1.2
//   exp_expm1_nonpositive   the same for x <= 0                          1.2     1.2
//   expm1                   everywhere; also of exp_expm1                1.7     2.2
//   expm1_nonpositive       of exp_expm1_nonpositive, x <= 0             1.1     1.3
//   log                     everywhere                                   1.1     1.0
//   log_positive            x positive, normal and finite                1.1     1.0
//   log1p                   everywhere                                   1.1     1.0
//   log1p_unit              0 <= x <= 1                                  1.0     1.0
//   log1mexp                x and the result normal                      3.1     3.2
//   sigmoid                 the result is normal                         2.5     2.5
//   log_sigmoid             the result is normal                         1.8     1.8
//   softplus                the result is normal                         1.8     1.8
//   tanh                    everywhere                                   2.6     2.8
//   sinpi                   of sincospi, |x| <= 2^20                     1.7     1.7
//   cospi                   of sincospi, |x| <= 2^20                     1.7     1.7
//   atan                    everywhere                                   1.9     1.7
//   erfc                    the result is normal                         4.7     6.0
//   log_erfc                x >= 1/2; below, 2 epsilon absolutely        3.2     4.0
//
// A NaN gives a NaN. Subnormal results may come out as 0, and e^x does so on purpose: subnormal
// operands cost a hundred cycles each. Otherwise each function says what happens at its edges.
#pragma once

#include "simd.h"

namespace gmfast {
inline namespace GMFAST_LEVEL {

// ---------------------------------------------------------------------------------------------
// On a CUDA device float goes to CUDA's own functions where they are as accurate as ours, because
// they use the special-function unit. This is the only place that does so: overload resolution
// prefers these to the templates below.
// ---------------------------------------------------------------------------------------------

#if defined(__CUDA_ARCH__)
GMFAST_HD float exp(float x) { return ::expf(x); }
GMFAST_HD float exp_nonpositive(float x) { return ::expf(x); }
GMFAST_HD float expm1(float x) { return ::expm1f(x); }
GMFAST_HD float log(float x) { return ::logf(x); }
GMFAST_HD float log_positive(float x) { return ::logf(x); }
GMFAST_HD float log1p(float x) { return ::log1pf(x); }
GMFAST_HD float tanh(float x) { return ::tanhf(x); }
GMFAST_HD float atan(float x) { return ::atanf(x); }
GMFAST_HD void sincospi(float x, float* s, float* c) { ::sincospif(x, s, c); }
#endif

// ---------------------------------------------------------------------------------------------
// Pieces
// ---------------------------------------------------------------------------------------------

// c_n x^n + ... + c_0, the highest coefficient first.
template <class V>
GMFAST_HD V horner(V, V sum) {
  return sum;
}
template <class V, class... Rest>
GMFAST_HD V horner(V x, V sum, Scalar<V> c, Rest... rest) {
  return horner<V>(x, fma(sum, x, splat<V>(c)), rest...);
}
template <class V, class... Rest>
GMFAST_HD V polynomial(V x, Scalar<V> c, Rest... rest) {
  return horner<V>(x, splat<V>(c), rest...);
}

// The IEEE format of V's scalar.
template <class V>
struct Format {
  static constexpr int mantissa_bits = is_single<V> ? 23 : 52;
  static constexpr int bias = is_single<V> ? 127 : 1023;
  static constexpr Scalar<V> smallest_normal =
      is_single<V> ? Scalar<V>(0x1p-126) : Scalar<V>(0x1p-1022);
  static constexpr Scalar<V> infinity = Scalar<V>(__builtin_huge_val());
  static constexpr Scalar<V> log_smallest_normal =
      is_single<V> ? Scalar<V>(-87.33654f) : Scalar<V>(-708.3964185322641);
  static constexpr Scalar<V> log_largest =
      is_single<V> ? Scalar<V>(88.72283f) : Scalar<V>(709.782712893384);
};

template <class V>
constexpr bool is_avx512 = GMFAST_X86 && sizeof(V) == 64;

// 2^k for an integer k in the exponent range of normal numbers, or zero at one below it; `k_bits`
// has k in its low bits, and anything in those that the shift drops.
template <class V>
GMFAST_HD V power_of_two(UnsignedInteger<V> k_bits) {
  using U = UnsignedInteger<V>;
  const U bias = splat<U>(Format<V>::bias);
  return bit_cast<V>((k_bits + bias) << Format<V>::mantissa_bits);
}

// n / d in one rounding or very nearly, for 2^-100 < d < 2^100 and a quotient in that range or 0.
// An AVX-512 division of 16 floats takes as long as 16 multiplications, and a device division has a
// slow path for other d, so both refine an approximate reciprocal instead.
template <class V>
GMFAST_HD V quotient(V n, V d) {
#if defined(__CUDA_ARCH__)
  if constexpr (std::is_same<V, float>::value) {
    float r;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(d));
    const float q = n * r;
    return fma(fma(-q, d, n), r, q);
  }
#elif GMFAST_X86 && defined(__AVX512F__)
  if constexpr (std::is_same<V, Vec<float, 16>>::value) {
    V r = _mm512_rcp14_ps(d);
    r = fma(fma(-r, d, splat<V>(1)), r, r);
    const V q = n * r;
    return fma(fma(-q, d, n), r, q);
  }
#endif
  return n / d;
}

// ---------------------------------------------------------------------------------------------
// Exponentials: x = n log 2 + r, |r| <= log(2)/2
// ---------------------------------------------------------------------------------------------

template <class V>
struct ExpReduction {
  V n, r;
  UnsignedInteger<V> n_bits;  // n in the low bits
};

// For |x| up to 2^20. The product is rounded to an integer by the addition of 1.5 *
// 2^mantissa_bits, which leaves that integer in the low bits; log 2 is subtracted in two parts, the
// first short enough for n times it to be exact.
template <class V>
GMFAST_HD ExpReduction<V> reduce_exp(V x) {
  using S = Scalar<V>;
  const V magic = splat<V>(is_single<V> ? S(0x1.8p23) : S(0x1.8p52));
  const V minus_log2_high = splat<V>(is_single<V> ? S(-0x1.63p-1) : S(-0x1.62e42feep-1));
  const V minus_log2_low = splat<V>(is_single<V> ? S(2.12194440e-4f) : S(-1.9082149292705877e-10));
  const V shifted = fma(x, splat<V>(S(1.4426950408889634)), magic);
  const V n = shifted - magic;
  const V r = fma(n, minus_log2_low, fma(n, minus_log2_high, x));
  return {n, r, bit_cast<UnsignedInteger<V>>(shifted)};
}

// (e^r - 1 - r) / r^2, fitted for the relative error of e^r - 1: 2^-26 and 2^-55.
template <class V>
GMFAST_HD V expm1_tail(V r) {
  if constexpr (is_single<V>) {
    return polynomial<V>(r, 0.00139009499f, 0.00836611353f, 0.0416668244f, 0.16666548f, 0.5f);
  } else {
    return polynomial<V>(r, 2.5045937706778785e-08, 2.762223597545891e-07, 2.755742499661921e-06,
                         2.480151632806287e-05, 0.00019841269709398068, 0.0013888888920522745,
                         0.008333333333388369, 0.04166666666661995, 0.16666666666666602, 0.5);
  }
}

template <class V>
GMFAST_HD V exp_of_reduced(V r) {
  return fma(r, fma(r, expm1_tail(r), splat<V>(1)), splat<V>(1));
}
template <class V>
GMFAST_HD V expm1_of_reduced(V r) {
  return fma(r * r, expm1_tail(r), r);
}

#if GMFAST_X86 && defined(__AVX512F__)
// p * 2^n where x >= lowest or x is NaN, else 0.
GMFAST_HD Vec<float, 16> scale_unless_below(Vec<float, 16> p, Vec<float, 16> n, Vec<float, 16> x,
                                            Vec<float, 16> lowest) {
  return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(x, lowest, _CMP_NLT_UQ), p, n);
}
GMFAST_HD Vec<double, 8> scale_unless_below(Vec<double, 8> p, Vec<double, 8> n, Vec<double, 8> x,
                                            Vec<double, 8> lowest) {
  return _mm512_maskz_scalef_pd(_mm512_cmp_pd_mask(x, lowest, _CMP_NLT_UQ), p, n);
}
#endif

// e^x for x <= 0, such as a softmax's exponents: cheaper than exp. 0 where it would be subnormal.
template <class V>
GMFAST_HD V exp_nonpositive(V x) {
  const V lowest = splat<V>(Format<V>::log_smallest_normal);
  const ExpReduction<V> reduced = reduce_exp(x);
  const V p = exp_of_reduced(reduced.r);
  if constexpr (is_avx512<V>) {
    return scale_unless_below(p, reduced.n, x, lowest);
  } else {
    return select<V>(x < lowest, splat<V>(0), p * power_of_two<V>(reduced.n_bits));
  }
}

// e^x: infinite above the range, 0 where it would be subnormal.
template <class V>
GMFAST_HD V exp(V x) {
  const V lowest = splat<V>(Format<V>::log_smallest_normal);
  const V highest = splat<V>(Format<V>::log_largest);
  if constexpr (is_avx512<V>) {
    const ExpReduction<V> reduced = reduce_exp(min(splat<V>(Format<V>::log_largest + 1), x));
    return scale_unless_below(exp_of_reduced(reduced.r), reduced.n, x, lowest);
  } else {
    using U = UnsignedInteger<V>;
    const ExpReduction<V> reduced = reduce_exp(x);
    // The exponent is added to that of p, because 2^128 has none of its own.
    const U p = bit_cast<U>(exp_of_reduced(reduced.r));
    const V y = bit_cast<V>(p + (reduced.n_bits << Format<V>::mantissa_bits));
    return select<V>(x <= highest, select<V>(x < lowest, splat<V>(0), y),
                     x + splat<V>(Format<V>::infinity));
  }
}

// e^x and e^x - 1 for x <= 0, both accurate. e is 0 where it would be subnormal.
template <class V>
GMFAST_HD void exp_expm1_nonpositive(V x, V* e, V* em1) {
  const ExpReduction<V> reduced = reduce_exp(max(splat<V>(Format<V>::log_smallest_normal - 1), x));
  const V p = expm1_of_reduced(reduced.r);
  const V scale = power_of_two<V>(reduced.n_bits);
  *e = fma(scale, p, scale);
  *em1 = fma(scale, p, scale - splat<V>(1));
}

// e^x and e^x - 1, both accurate. e is 0 where it would be below 1.5 times the smallest normal.
template <class V>
GMFAST_HD void exp_expm1(V x, V* e, V* em1) {
  const V lowest = splat<V>(Format<V>::log_smallest_normal);
  const V highest = splat<V>(Format<V>::log_largest + Scalar<V>(0.25));
  const ExpReduction<V> reduced = reduce_exp(max(lowest, min(highest, x)));
  const V p = expm1_of_reduced(reduced.r);
  // Half the scale and twice the result, because 2^128 is not a float.
  const V half_scale = power_of_two<V>(reduced.n_bits - 1u);
  const V half_e = fma(half_scale, p, half_scale);
  const V half_em1 = fma(half_scale, p, half_scale - splat<V>(Scalar<V>(0.5)));
  *e = half_e + half_e;
  *em1 = half_em1 + half_em1;
}

// e^x - 1.
template <class V>
GMFAST_HD V expm1(V x) {
  V e, em1;
  exp_expm1(x, &e, &em1);
  return em1;
}

// ---------------------------------------------------------------------------------------------
// Logarithms: x = 2^k m, 3/4 <= m < 3/2
// ---------------------------------------------------------------------------------------------

template <class V>
struct LogReduction {
  V k, m;
};

// For x positive, normal and finite. With AVX-512 also for every other x, whose logarithm then
// comes out of log_of_reduced() as it should.
template <class V>
GMFAST_HD LogReduction<V> reduce_log(V x) {
#if GMFAST_X86 && defined(__AVX512F__)
  if constexpr (std::is_same<V, Vec<float, 16>>::value) {
    const V m = _mm512_getmant_ps(x, _MM_MANT_NORM_p75_1p5, _MM_MANT_SIGN_nan);
    return {V(_mm512_getexp_ps(x)) - V(_mm512_getexp_ps(m)), m};
  } else if constexpr (std::is_same<V, Vec<double, 8>>::value) {
    const V m = _mm512_getmant_pd(x, _MM_MANT_NORM_p75_1p5, _MM_MANT_SIGN_nan);
    return {V(_mm512_getexp_pd(x)) - V(_mm512_getexp_pd(m)), m};
  }
#endif
  // Counted from the bits of 3/4, the exponent field is k (the bias keeps it positive).
  using U = UnsignedInteger<V>;
  constexpr int mantissa_bits = Format<V>::mantissa_bits;
  const U origin = bit_cast<U>(splat<V>(Scalar<V>(0.75)));
  const U one = splat<U>(1);
  const U offset = bit_cast<U>(x) - origin + (splat<U>(Format<V>::bias) << mantissa_bits);
  const V m = bit_cast<V>((offset & ((one << mantissa_bits) - one)) + origin);
  // The biased exponent becomes a number as the low bits of 2^mantissa_bits.
  const V base = splat<V>(is_single<V> ? Scalar<V>(0x1p23) : Scalar<V>(0x1p52));
  const V biased = bit_cast<V>((offset >> mantissa_bits) | bit_cast<U>(base));
  return {biased - (base + splat<V>(Scalar<V>(Format<V>::bias))), m};
}

// k log 2 + log(1 + f) for -1/4 <= f <= 1/2.
template <class V>
GMFAST_HD V log_of_reduced(V k, V f) {
  if constexpr (is_single<V>) {
    // (log(1 + f) - f) / f^2, fitted for the relative error of log(1 + f): 2^-27.
    const V tail = polynomial<V>(f, -0.0450756811f, 0.104648851f, -0.131629914f, 0.144786566f,
                                 -0.166471153f, 0.199908137f, -0.250001013f, 0.333334506f, -0.5f);
    return fma(k, splat<V>(0.693147182f), fma(f * f, tail, f));
  } else {
    // With s = f / (2 + f), log(1 + f) = 2s + s R, and 2s = f - f^2/2 + s f^2/2. R/s^2 is fitted in
    // s^2 for the relative error of log(1 + f): 2^-61.
    const V s = f / (f + splat<V>(2.0));
    const V z = s * s;
    const V R = z * polynomial<V>(z, 0.13843842728488184, 0.13173484496963603, 0.1539111847969826,
                                  0.18181665687984078, 0.22222224299307328, 0.2857142855580727,
                                  0.40000000000056735, 0.666666666666666);
    const V half_square = splat<V>(0.5) * f * f;
    const V correction = fma(s, half_square + R, k * splat<V>(1.9082149292705877e-10));
    return fma(k, splat<V>(0x1.62e42feep-1), f - (half_square - correction));
  }
}

// log x for x positive, normal and finite, or NaN.
template <class V>
GMFAST_HD V log_positive(V x) {
  const LogReduction<V> reduced = reduce_log(x);
  const V m = is_avx512<V> ? reduced.m : fma(x, splat<V>(0), reduced.m);  // lets a NaN through
  return log_of_reduced(reduced.k, m - splat<V>(1));
}

// log x: -infinity at 0, NaN below, exact to the last subnormal.
template <class V>
GMFAST_HD V log(V x) {
  if constexpr (is_avx512<V>) {
    return log_positive(x);
  } else {
    using S = Scalar<V>;
    const V infinity = splat<V>(Format<V>::infinity);
    const V up = splat<V>(is_single<V> ? S(0x1p24) : S(0x1p53));
    const V up_k = splat<V>(Format<V>::mantissa_bits + 1);
    const auto subnormal = x < splat<V>(Format<V>::smallest_normal);
    const LogReduction<V> reduced = reduce_log(select<V>(subnormal, x * up, x));
    const V k = select<V>(subnormal, reduced.k - up_k, reduced.k);
    const V y = log_of_reduced(k, reduced.m - splat<V>(1));
    const V beyond = select<V>(x == splat<V>(0), -infinity, splat<V>(S(__builtin_nan(""))));
    return select<V>(x > splat<V>(0), select<V>(x < infinity, y, x), beyond);
  }
}

// log(1 + x): -infinity at -1, NaN below.
template <class V>
GMFAST_HD V log1p(V x) {
  using S = Scalar<V>;
  const V one = splat<V>(1);
  const V infinity = splat<V>(Format<V>::infinity);
  const V sum = one + x;
  const LogReduction<V> reduced = reduce_log(sum);
  // From the x that was given, not from the rounded sum: 2^-k (1 + x) - 1. Where x is so large that
  // adding 1 does not matter, 2^-k may not exist.
  const V magic = splat<V>(is_single<V> ? S(0x1.8p23) : S(0x1.8p52));
  const V scale = power_of_two<V>(bit_cast<UnsignedInteger<V>>(magic - reduced.k));
  const auto large = x > splat<V>(is_single<V> ? S(0x1p30) : S(0x1p60));
  const V f = select<V>(large, reduced.m - one, fma(x, scale, scale - one));
  const V y = log_of_reduced(reduced.k, f);
  const V beyond = select<V>(x == -one, -infinity, splat<V>(S(__builtin_nan(""))));
  return select<V>(x > -one, select<V>(x < infinity, y, x), beyond);
}

// log(1 + t) for 0 <= t <= 1, such as t = e^-|x|: cheaper than log1p.
template <class V>
GMFAST_HD V log1p_unit(V t) {
  const V half = splat<V>(Scalar<V>(0.5));
  const auto small = t < half;
  const V f = select<V>(small, t, fma(half, t, -half));
  return log_of_reduced(select<V>(small, splat<V>(0), splat<V>(1)), f);
}

// log(1 - e^-h) for h > 0. An h below the smallest normal number, 0 included, counts as that
// number, so the result is finite.
template <class V>
GMFAST_HD V log1mexp(V h) {
  V e, em1;
  exp_expm1_nonpositive(-max(splat<V>(Format<V>::smallest_normal), h), &e, &em1);
  const LogReduction<V> reduced = reduce_log(-em1);
  // Near 1 the small term itself, which the difference has lost (and which a NaN selects).
  const auto apart = -em1 < splat<V>(Scalar<V>(0.75));
  return log_of_reduced(reduced.k, select<V>(apart, reduced.m - splat<V>(1), -e));
}

// ---------------------------------------------------------------------------------------------
// Sigmoids
// ---------------------------------------------------------------------------------------------

// 1 / (1 + e^-x).
template <class V>
GMFAST_HD V sigmoid(V x) {
  const V one = splat<V>(1);
  const V t = exp_nonpositive(-abs(x));
  return quotient(select<V>(x < splat<V>(0), t, one), one + t);
}

// log(1 + e^x).
template <class V>
GMFAST_HD V softplus(V x) {
  return max(splat<V>(0), x) + log1p_unit(exp_nonpositive(-abs(x)));
}

// log sigmoid(x) = -softplus(-x).
template <class V>
GMFAST_HD V log_sigmoid(V x) {
  return min(splat<V>(0), x) - log1p_unit(exp_nonpositive(-abs(x)));
}

template <class V>
GMFAST_HD V tanh(V x) {
  V e, em1;
  const V a = abs(x);
  exp_expm1_nonpositive(-(a + a), &e, &em1);
  return copysign(quotient(-em1, em1 + splat<V>(2)), x);
}

// ---------------------------------------------------------------------------------------------
// Trigonometry
// ---------------------------------------------------------------------------------------------

// sin(pi x) and cos(pi x) for |x| <= 2^20.
template <class V>
GMFAST_HD void sincospi(V x, V* s, V* c) {
  using S = Scalar<V>;
  using U = UnsignedInteger<V>;
  // x = q/2 + r, |r| <= 1/4, and the low bits of q say which of the four quadrants.
  const V magic = splat<V>(is_single<V> ? S(0x1.8p23) : S(0x1.8p52));
  const V shifted = fma(x, splat<V>(2), magic);
  const V r = fma(shifted - magic, splat<V>(S(-0.5)), x);
  const U q = bit_cast<U>(shifted);
  const V z = r * r;
  // sin(pi r)/r - pi and (cos(pi r) - 1)/r^2 in r^2, fitted for their absolute error: 2^-26 and
  // 2^-31, 2^-56 and 2^-61. The sine's last coefficient is what rounding took from pi.
  V sine, cosine;
  if constexpr (is_single<V>) {
    sine = polynomial<V>(z, -0.589120269f, 2.54977131f, -5.16770792f, -9.7085362e-08f);
    cosine = polynomial<V>(z, 0.228722066f, -1.33473492f, 4.05869627f, -4.93480206f);
  } else {
    sine = polynomial<V>(z, 0.0004615239516791156, -0.007370020085768555, 0.08214586907283858,
                         -0.5992645289361196, 2.5501640398733243, -5.167712780049954,
                         1.12577674190567e-16);
    cosine = polynomial<V>(z, -2.6836318531721214e-05, -9.692787297979231e-05,
                           0.0019288006851080465, -0.02580685115241042, 0.23533062920851477,
                           -1.3352627688369951, 4.058712126416641, -4.934802200544679);
  }
  sine = fma(r, splat<V>(S(3.14159265358979323846)), r * sine);
  cosine = fma(z, cosine, splat<V>(1));
  // Odd quadrants exchange the two; the sine is negative in quadrants 2 and 3, the cosine in 1
  // and 2.
  constexpr int to_sign = 8 * int(sizeof(S)) - 2;
  const U sign = bit_cast<U>(splat<V>(S(-0.0)));
  const auto odd = (q & 1u) != 0u;
  const U sine_sign = (q << to_sign) & sign;
  const U cosine_sign = ((q + 1u) << to_sign) & sign;
  *s = bit_cast<V>(bit_cast<U>(select<V>(odd, cosine, sine)) ^ sine_sign);
  *c = bit_cast<V>(bit_cast<U>(select<V>(odd, sine, cosine)) ^ cosine_sign);
}

template <class V>
GMFAST_HD V atan(V x) {
  using S = Scalar<V>;
  const V one = splat<V>(1);
  const V a = abs(x);
  // Tangents of 3 pi/8 and pi/8: what is left is the arc tangent of at most tan(pi/8).
  const auto large = a > splat<V>(S(2.414213562373095));
  const auto middle = a > splat<V>(S(0.41421356237309503));
  const V n = select<V>(large, -one, select<V>(middle, a - one, a));
  const V d = select<V>(large, a, select<V>(middle, a + one, one));
  const V pi_4 = splat<V>(S(0.78539816339744830962));
  const V pi_4_low = splat<V>(is_single<V> ? S(-2.18556950e-8) : S(3.061616997868383e-17));
  const V base = select<V>(large, pi_4 + pi_4, select<V>(middle, pi_4, splat<V>(0)));
  const V base_low =
      select<V>(large, pi_4_low + pi_4_low, select<V>(middle, pi_4_low, splat<V>(0)));
  const V t = n / d;
  const V z = t * t;
  // (atan(t)/t - 1) / t^2 in t^2, fitted for the relative error of atan(t): 2^-30 and 2^-59.
  V tail;
  if constexpr (is_single<V>) {
    tail =
        polynomial<V>(z, -0.0609270707f, 0.106001653f, -0.142445102f, 0.199985325f, -0.333333164f);
  } else {
    tail = polynomial<V>(z, -0.017916699640910312, 0.038073147488471536, -0.05039638570667404,
                         0.05847962198979238, -0.06663113847392502, 0.07692061051284824,
                         -0.09090897802885403, 0.11111110784948677, -0.14285714280224307,
                         0.19999999999953838, -0.333333333333332);
  }
  return copysign(base + (t + fma(t * z, tail, base_low)), x);
}

// ---------------------------------------------------------------------------------------------
// Error function
// ---------------------------------------------------------------------------------------------

// What rounding took from the square: a a - a2, exactly where it is a number.
template <class V>
GMFAST_HD V square_remainder(V a, V a2) {
  if constexpr (has_fused_multiply_add) {
    return fma(a, a, -a2);
  } else {
    // The upper half of the bits has an exact square.
    constexpr int low_bits = Format<V>::mantissa_bits / 2 + 1;
    const V high = bit_cast<V>((bit_cast<UnsignedInteger<V>>(a) >> low_bits) << low_bits);
    const V low = a - high;
    return ((high * high - a2) + (high + high) * low) + low * low;
  }
}

// e^(a^2) erfc(a) for 0 <= a; a above 2^30 counts as that.
template <class V>
GMFAST_HD V erfcx_nonnegative(V a) {
  using S = Scalar<V>;
  a = min(splat<V>(S(0x1p30)), a);
  // (a + c) e^(a^2) erfc(a) is smooth in u = (a - c) / (a + c), which is in [-1, 1].
  const V c = splat<V>(is_single<V> ? S(2) : S(4));
  const V one = splat<V>(1);
  V r = one / (a + c);
  V u = (a - c) * r;
  // A step of Newton for each, without the rounded sums.
  u = fma(fma(-u, a, fma(-c, u + one, a)), r, u);
  r = fma(fma(-r, a, fma(-r, c, one)), r, r);
  V p;  // Fitted for the relative error: 2^-25 and 2^-54.
  if constexpr (is_single<V>) {
    p = polynomial<V>(u, 8.39810964e-05f, 7.26750659e-05f, -0.000597615493f, -0.000860072672f,
                      0.00305691198f, 0.00648585986f, -0.0215025079f, -0.0364430025f, 0.279471308f,
                      -0.687160671f, 1.02158272f);
  } else {
    p = polynomial<V>(u, 1.1253647394201831e-09, 3.0715117689414706e-10, -1.4839883552775974e-08,
                      6.098081243329476e-10, 1.215345350850793e-07, -7.549945249929573e-08,
                      -8.423743178550043e-07, 1.424371486935688e-06, 4.6913705005224845e-06,
                      -1.8861043184587333e-05, -3.633690607560177e-06, 0.00017681287819044776,
                      -0.00045505313727886576, -0.00028095887649049427, 0.0061120557413949644,
                      -0.026370053339615427, 0.0763815148999175, -0.1740109372398924,
                      0.33085158787853614, -0.5408538313132412, 0.7732087022652258,
                      -0.9765487290808819, 1.095995661000491);
  }
  return p * r;
}

// 1 - erf(x), with the relative accuracy kept in the tail.
template <class V>
GMFAST_HD V erfc(V x) {
  const V a = min(splat<V>(32), abs(x));  // from there on it is 0 in double, too
  const V a2 = a * a;
  const V rounded = exp_nonpositive(-a2) * erfcx_nonnegative(a);
  const V tail = fma(-rounded, square_remainder(a, a2), rounded);
  return select<V>(x < splat<V>(0), splat<V>(2) - tail, tail);
}

// log erfc(x), finite where erfc(x) is too small for a number. Near 0, where the result is, its
// error is absolute.
template <class V>
GMFAST_HD V log_erfc(V x) {
  const V zero = splat<V>(0);
  const V a = abs(x);
  const V scaled = erfcx_nonnegative(a);
  const auto left = x < zero;
  const V e = exp_nonpositive(-a * a);
  const V y = log_positive(select<V>(left, splat<V>(2) - e * scaled, scaled));
  return select<V>(left, y, fma(-a, a, y));
}

}  // namespace GMFAST_LEVEL
}  // namespace gmfast
