// One vocabulary for scalars and vectors, so that a formula is written once:
//
//   template <class V> GMFAST_HD V smoothstep(V x) {
//     x = min(max(x, splat<V>(0)), splat<V>(1));
//     return x * x * fma(splat<V>(-2), x, splat<V>(3));
//   }
//
// V is float or double (what a CUDA thread runs, and any C++ compiler) or Native<float>,
// Native<double>: a GCC/Clang vector of exactly the machine's width (what a CPU kernel runs).
// Arithmetic, comparison and bit operators are the language's own.
//
// Everything is inlined and lives in a namespace named after the SIMD level of the compile, so that
// objects compiled at several levels can be linked together.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#if defined(__CUDACC__)
#define GMFAST_HD __host__ __device__ __forceinline__
#else
#define GMFAST_HD inline __attribute__((always_inline))
#endif

// Before a loop of few iterations over arrays that are to stay in registers.
#if defined(__CUDACC__)
#define GMFAST_UNROLL _Pragma("unroll")
#elif defined(__clang__)
#define GMFAST_UNROLL _Pragma("clang loop unroll(full)")
#else
#define GMFAST_UNROLL _Pragma("GCC unroll 16")
#endif

#ifndef GMFAST_LEVEL
#if defined(__CUDACC__)
#define GMFAST_LEVEL device_level
#elif defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && \
    defined(__AVX512VL__)
#define GMFAST_LEVEL v4
#elif defined(__AVX2__) && defined(__FMA__)
#define GMFAST_LEVEL v3
#elif defined(__SSE4_2__)
#define GMFAST_LEVEL v2
#else
#define GMFAST_LEVEL native_level
#endif
#endif

// Where the instructions that have no spelling in the vector extension may be named.
#if defined(__SSE4_1__) && !defined(__CUDACC__)
#define GMFAST_X86 1
#pragma GCC diagnostic push
#if !defined(__clang__)  // GCC 12 warns about its own headers, once they are inlined
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#pragma GCC diagnostic pop
#else
#define GMFAST_X86 0
#endif
#if defined(__aarch64__) && !defined(__CUDACC__)
#include <arm_neon.h>
#endif

namespace gmfast {
inline namespace GMFAST_LEVEL {

// ---------------------------------------------------------------------------------------------
// Types
// ---------------------------------------------------------------------------------------------

// True where fma() rounds once; elsewhere it is a multiplication and an addition.
#if defined(__CUDACC__) || defined(__FMA__) || defined(__aarch64__)
constexpr bool has_fused_multiply_add = true;
#else
constexpr bool has_fused_multiply_add = false;
#endif

#if !defined(__CUDACC__)

#if defined(__AVX512F__)
constexpr int native_bytes = 64;
#elif defined(__AVX2__)
constexpr int native_bytes = 32;
#else
constexpr int native_bytes = 16;
#endif

template <class T, int N>
struct VectorType {
  typedef T type __attribute__((vector_size(N * sizeof(T))));
};
template <class T, int N>
using Vec = typename VectorType<T, N>::type;

template <class T>
constexpr int native_lanes = native_bytes / int(sizeof(T));
template <class T>
using Native = Vec<T, native_lanes<T>>;

// The primary template is a vector; the scalars are specialised below.
template <class V>
struct Traits {
  using scalar = std::decay_t<decltype(std::declval<V&>()[0])>;
  static constexpr int lanes = int(sizeof(V) / sizeof(scalar));
  using mask = decltype(std::declval<V&>() < std::declval<V&>());  // lanes of 0 or -1
  using integer = mask;
  using unsigned_integer =
      Vec<std::make_unsigned_t<std::decay_t<decltype(std::declval<mask&>()[0])>>, lanes>;
  template <class T>
  using rebind = Vec<T, lanes>;
};

#else

template <class V>
struct Traits;

#endif

template <class T, class I>
struct ScalarTraits {
  using scalar = T;
  static constexpr int lanes = 1;
  using mask = bool;
  using integer = I;
  using unsigned_integer = std::make_unsigned_t<I>;
  template <class U>
  using rebind = U;
};
template <>
struct Traits<float> : ScalarTraits<float, int32_t> {};
template <>
struct Traits<double> : ScalarTraits<double, int64_t> {};
template <>
struct Traits<int32_t> : ScalarTraits<int32_t, int32_t> {};
template <>
struct Traits<uint32_t> : ScalarTraits<uint32_t, int32_t> {};
template <>
struct Traits<int64_t> : ScalarTraits<int64_t, int64_t> {};
template <>
struct Traits<uint64_t> : ScalarTraits<uint64_t, int64_t> {};
template <>
struct Traits<uint16_t> : ScalarTraits<uint16_t, int16_t> {};

template <class V>
using Scalar = typename Traits<V>::scalar;
template <class V>
using Integer = typename Traits<V>::integer;
template <class V>
using UnsignedInteger = typename Traits<V>::unsigned_integer;
template <class V>
using Mask = typename Traits<V>::mask;
template <class V>
constexpr int lanes = Traits<V>::lanes;

// As many lanes as V has, of T.
template <class V, class T>
using Rebind = typename Traits<V>::template rebind<T>;

template <class V>
constexpr bool is_scalar = std::is_arithmetic<V>::value;
template <class V>
constexpr bool is_single = std::is_same<Scalar<V>, float>::value;

// Storage types without arithmetic: IEEE binary16 and bfloat16.
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// The type in which values stored as T are computed.
template <class T>
using Compute = std::conditional_t<std::is_same<T, double>::value, double, float>;

// ---------------------------------------------------------------------------------------------
// Lanes
// ---------------------------------------------------------------------------------------------

template <class V>
GMFAST_HD V splat(Scalar<V> s) {
  if constexpr (is_scalar<V>) {
    return s;
  } else {
    return s - V{};  // exact for every s: subtracting +0 keeps -0
  }
}

// mask ? a : b in each lane. Both are evaluated.
template <class V>
GMFAST_HD V select(Mask<V> mask, V a, V b) {
  return mask ? a : b;
}

template <class M>
GMFAST_HD M mask_and(M a, M b) {
  return a & b;
}
template <class M>
GMFAST_HD M mask_or(M a, M b) {
  return a | b;
}
template <class M>
GMFAST_HD M mask_not(M a) {
  if constexpr (is_scalar<M>) {
    return !a;
  } else {
    return ~a;
  }
}

// The same bytes as another type of the same size.
template <class To, class From>
GMFAST_HD To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast keeps the size");
  To to;
  __builtin_memcpy(&to, &from, sizeof(To));
  return to;
}
template <class V>
GMFAST_HD Integer<V> bits(V v) {
  return bit_cast<Integer<V>>(v);
}
template <class V>
GMFAST_HD V from_bits(Integer<V> i) {
  return bit_cast<V>(i);
}

// Each lane's value as the scalar type of W, as a static_cast would: to nearest even between
// floating-point types, towards zero to an integer.
template <class W, class V>
GMFAST_HD W convert(V v) {
  static_assert(lanes<W> == lanes<V>, "convert keeps the lanes");
  if constexpr (is_scalar<W>) {
    return static_cast<W>(v);
  } else {
    return __builtin_convertvector(v, W);
  }
}

// Towards zero, to the integer of the same width, where it fits.
template <class V>
GMFAST_HD Integer<V> truncate(V v) {
  return convert<Integer<V>>(v);
}

// 0, 1, 2, ... by lane.
template <class V>
GMFAST_HD V iota() {
  V v = splat<V>(0);
  if constexpr (!is_scalar<V>) {
    for (int i = 0; i < lanes<V>; ++i) v[i] = Scalar<V>(i);
  }
  return v;
}

#if !defined(__CUDACC__)

template <int First, class V, int... I>
GMFAST_HD Vec<Scalar<V>, int(sizeof...(I))> take(V v, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(v, v, (First + I)...);
}
template <class V>
using HalfLanes = std::make_integer_sequence<int, lanes<V> / 2>;

#endif

// Combines all lanes with `op` as a tree: lane i with lane i + lanes/2, and so on down.
template <class V, class Op>
GMFAST_HD Scalar<V> reduce(V v, Op op) {
  if constexpr (is_scalar<V>) {
    return v;
#if !defined(__CUDACC__)
  } else if constexpr (lanes<V> == 2) {
    return op(v[0], v[1]);
  } else {
    return reduce(op(take<0>(v, HalfLanes<V>{}), take<lanes<V> / 2>(v, HalfLanes<V>{})), op);
#endif
  }
}

// ---------------------------------------------------------------------------------------------
// Arithmetic
// ---------------------------------------------------------------------------------------------

// a < b ? a : b, so b where one of the two is NaN; max alike.
template <class V>
GMFAST_HD V min(V a, V b) {
  return select<V>(a < b, a, b);
}
template <class V>
GMFAST_HD V max(V a, V b) {
  return select<V>(a > b, a, b);
}

template <class V>
GMFAST_HD V abs(V v) {
  return from_bits<V>(bits(v) & ~bits(splat<V>(Scalar<V>(-0.0))));
}

template <class V>
GMFAST_HD V copysign(V magnitude, V sign) {
  const Integer<V> top = bits(splat<V>(Scalar<V>(-0.0)));
  return from_bits<V>((bits(magnitude) & ~top) | (bits(sign) & top));
}

// a * b + c, rounded once where has_fused_multiply_add.
template <class V>
GMFAST_HD V fma(V a, V b, V c) {
  if constexpr (has_fused_multiply_add && std::is_same<V, float>::value) {
    return __builtin_fmaf(a, b, c);
  } else if constexpr (has_fused_multiply_add && std::is_same<V, double>::value) {
    return __builtin_fma(a, b, c);
  } else {
    return a * b + c;
  }
}

// The square root, and the nearest integer (ties to even) and the integer below, as a V.
#define GMFAST_EACH_LANE(name, builtin_float, builtin_double)    \
  template <class V>                                             \
  GMFAST_HD V name(V v) {                                        \
    if constexpr (std::is_same<V, float>::value) {               \
      return builtin_float(v);                                   \
    } else if constexpr (std::is_same<V, double>::value) {       \
      return builtin_double(v);                                  \
    } else {                                                     \
      V result;                                                  \
      for (int i = 0; i < lanes<V>; ++i) result[i] = name(v[i]); \
      return result;                                             \
    }                                                            \
  }
GMFAST_EACH_LANE(sqrt, __builtin_sqrtf, __builtin_sqrt)
GMFAST_EACH_LANE(round, __builtin_rintf, __builtin_rint)
GMFAST_EACH_LANE(floor, __builtin_floorf, __builtin_floor)
#undef GMFAST_EACH_LANE

// The overloads by width that name one instruction each.
#if GMFAST_X86
#define GMFAST_OVERLOADS(T, N, sqrt_of, round_of, min_of, max_of)            \
  GMFAST_HD Vec<T, N> min(Vec<T, N> a, Vec<T, N> b) { return min_of(a, b); } \
  GMFAST_HD Vec<T, N> max(Vec<T, N> a, Vec<T, N> b) { return max_of(a, b); } \
  GMFAST_HD Vec<T, N> sqrt(Vec<T, N> v) { return sqrt_of(v); }               \
  GMFAST_HD Vec<T, N> round(Vec<T, N> v) {                                   \
    return round_of(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);       \
  }                                                                          \
  GMFAST_HD Vec<T, N> floor(Vec<T, N> v) {                                   \
    return round_of(v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);           \
  }
GMFAST_OVERLOADS(float, 4, _mm_sqrt_ps, _mm_round_ps, _mm_min_ps, _mm_max_ps)
GMFAST_OVERLOADS(double, 2, _mm_sqrt_pd, _mm_round_pd, _mm_min_pd, _mm_max_pd)
#if defined(__AVX__)
GMFAST_OVERLOADS(float, 8, _mm256_sqrt_ps, _mm256_round_ps, _mm256_min_ps, _mm256_max_ps)
GMFAST_OVERLOADS(double, 4, _mm256_sqrt_pd, _mm256_round_pd, _mm256_min_pd, _mm256_max_pd)
#endif
#if defined(__AVX512F__)
GMFAST_OVERLOADS(float, 16, _mm512_sqrt_ps, _mm512_roundscale_ps, _mm512_min_ps, _mm512_max_ps)
GMFAST_OVERLOADS(double, 8, _mm512_sqrt_pd, _mm512_roundscale_pd, _mm512_min_pd, _mm512_max_pd)
#endif
#undef GMFAST_OVERLOADS
#elif defined(__aarch64__) && !defined(__CUDACC__)
GMFAST_HD Vec<float, 4> sqrt(Vec<float, 4> v) { return vsqrtq_f32(v); }
GMFAST_HD Vec<double, 2> sqrt(Vec<double, 2> v) { return vsqrtq_f64(v); }
GMFAST_HD Vec<float, 4> round(Vec<float, 4> v) { return vrndnq_f32(v); }
GMFAST_HD Vec<double, 2> round(Vec<double, 2> v) { return vrndnq_f64(v); }
GMFAST_HD Vec<float, 4> floor(Vec<float, 4> v) { return vrndmq_f32(v); }
GMFAST_HD Vec<double, 2> floor(Vec<double, 2> v) { return vrndmq_f64(v); }
#endif

// Named, because the compiler does not contract a product that it also needs by itself.
#if GMFAST_X86 && defined(__FMA__)
#define GMFAST_OVERLOADS(T, N, fma_of) \
  GMFAST_HD Vec<T, N> fma(Vec<T, N> a, Vec<T, N> b, Vec<T, N> c) { return fma_of(a, b, c); }
GMFAST_OVERLOADS(float, 4, _mm_fmadd_ps)
GMFAST_OVERLOADS(double, 2, _mm_fmadd_pd)
GMFAST_OVERLOADS(float, 8, _mm256_fmadd_ps)
GMFAST_OVERLOADS(double, 4, _mm256_fmadd_pd)
#if defined(__AVX512F__)
GMFAST_OVERLOADS(float, 16, _mm512_fmadd_ps)
GMFAST_OVERLOADS(double, 8, _mm512_fmadd_pd)
#endif
#undef GMFAST_OVERLOADS
#elif defined(__aarch64__) && !defined(__CUDACC__)
GMFAST_HD Vec<float, 4> fma(Vec<float, 4> a, Vec<float, 4> b, Vec<float, 4> c) {
  return vfmaq_f32(c, a, b);
}
GMFAST_HD Vec<double, 2> fma(Vec<double, 2> a, Vec<double, 2> b, Vec<double, 2> c) {
  return vfmaq_f64(c, a, b);
}
#endif

// Sum and maximum of all lanes, in the order of reduce().
template <class V>
GMFAST_HD Scalar<V> reduce_add(V v) {
  return reduce(v, [](auto a, auto b) { return a + b; });
}
template <class V>
GMFAST_HD Scalar<V> reduce_max(V v) {
  return reduce(v, [](auto a, auto b) { return max(a, b); });
}

// Whether some lane, every lane, of a mask is set.
template <class M>
GMFAST_HD bool any(M mask) {
  if constexpr (is_scalar<M>) {
    return mask;
#if defined(__AVX512DQ__) && GMFAST_X86
  } else if constexpr (std::is_same<M, Mask<Vec<float, 16>>>::value) {
    return _mm512_movepi32_mask(__m512i(mask)) != 0;
  } else if constexpr (std::is_same<M, Mask<Vec<double, 8>>>::value) {
    return _mm512_movepi64_mask(__m512i(mask)) != 0;
#endif
#if defined(__AVX2__) && GMFAST_X86
  } else if constexpr (sizeof(M) == 32) {
    return _mm256_movemask_epi8(__m256i(mask)) != 0;
#endif
#if GMFAST_X86
  } else if constexpr (sizeof(M) == 16) {
    return _mm_movemask_epi8(__m128i(mask)) != 0;
#endif
  } else {
    return reduce(mask, [](auto a, auto b) { return a | b; }) != 0;
  }
}
template <class M>
GMFAST_HD bool all(M mask) {
  return !any(mask_not(mask));
}

// ---------------------------------------------------------------------------------------------
// Half precision: float to and from the 16 bits, lane by lane
// ---------------------------------------------------------------------------------------------

template <class F>
using Words = Rebind<F, uint16_t>;

template <class F>
GMFAST_HD F from_bfloat16(Words<F> words) {
#if defined(__AVX512F__) && GMFAST_X86
  // Named, because compilers split the conversion.
  if constexpr (lanes<F> == 16) {
    return F(_mm512_slli_epi32(_mm512_cvtepu16_epi32(__m256i(words)), 16));
  }
#endif
  return bit_cast<F>(convert<UnsignedInteger<F>>(words) << 16);
}

template <class F>
GMFAST_HD Words<F> to_bfloat16(F v) {
  using U = UnsignedInteger<F>;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  uint16_t words;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(words) : "f"(v));
  return words;
#else
  const U u = bit_cast<U>(v);
  const U nearest_even = u + 0x7fffu + ((u >> 16) & 1u);
  const U quiet_nan = u | 0x400000u;
  const U rounded = select<U>(v == v, nearest_even, quiet_nan) >> 16;
#if defined(__AVX512F__) && GMFAST_X86
  // Named, because compilers split the conversion.
  if constexpr (lanes<F> == 16) return (Words<F>)(_mm512_cvtepi32_epi16(__m512i(rounded)));
#endif
  return convert<Words<F>>(rounded);
#endif
}

template <class F>
GMFAST_HD F from_half(Words<F> words) {
#if defined(__CUDA_ARCH__)
  float v;
  asm("cvt.f32.f16 %0, %1;" : "=f"(v) : "h"(words));
  return v;
#else
#if defined(__AVX512F__) && GMFAST_X86
  if constexpr (lanes<F> == 16) return _mm512_cvtph_ps(__m256i(words));
#endif
#if defined(__F16C__) && GMFAST_X86
  if constexpr (lanes<F> == 8) return _mm256_cvtph_ps(__m128i(words));
#endif
  // Moves exponent and mantissa into place and rebiases the exponent; infinities and NaNs need the
  // bias twice, and a subnormal is normalised by subtracting the implicit one that it does not
  // have.
  using U = UnsignedInteger<F>;
  const U h = convert<U>(words);
  const U exponent = h & 0x7c00u;
  const U v = ((h & 0x7fffu) << 13) + (112u << 23);
  const U subnormal =
      bit_cast<U>(bit_cast<F>(v + (1u << 23)) - from_bits<F>(splat<Integer<F>>(113 << 23)));
  const U special = v + (112u << 23);
  const U magnitude =
      select<U>(exponent == 0, subnormal, select<U>(exponent == 0x7c00u, special, v));
  return bit_cast<F>(magnitude | ((h & 0x8000u) << 16));
#endif
}

template <class F>
GMFAST_HD Words<F> to_half(F v) {
#if defined(__CUDA_ARCH__)
  uint16_t words;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(words) : "f"(v));
  return words;
#else
#if defined(__AVX512F__) && GMFAST_X86
  if constexpr (lanes<F> == 16) {
    return Words<F>(_mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
#endif
#if defined(__F16C__) && GMFAST_X86
  if constexpr (lanes<F> == 8) {
    return Words<F>(_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
#endif
  // A result below 2^-14 is subnormal: adding 1/2 aligns its last bit with that of the sum, which
  // rounds. From 2^16 on all is infinite or NaN; what rounds up to 2^16 carries into the exponent.
  using U = UnsignedInteger<F>;
  const U sign = bit_cast<U>(v) & 0x80000000u;
  const U a = bit_cast<U>(v) ^ sign;
  const U normal = (a - (112u << 23) + 0xfffu + ((a >> 13) & 1u)) >> 13;
  const U subnormal = bit_cast<U>(bit_cast<F>(a) + Scalar<F>(0.5)) - 0x3f000000u;
  const U special = select<U>(v == v, splat<U>(0x7c00u), 0x7e00u | ((a >> 13) & 0x3ffu));
  const U magnitude =
      select<U>(a < 0x38800000u, subnormal, select<U>(a >= 0x47800000u, special, normal));
  return convert<Words<F>>(magnitude | (sign >> 16));
#endif
}

// ---------------------------------------------------------------------------------------------
// Memory: no alignment is needed, and values convert between storage and V
// ---------------------------------------------------------------------------------------------

template <class V, class T>
GMFAST_HD V load(const T* p) {
  using F = Rebind<V, float>;
  if constexpr (std::is_same<T, Half>::value || std::is_same<T, BFloat16>::value) {
    Words<V> words;
    __builtin_memcpy(&words, p, sizeof(words));
    if constexpr (std::is_same<T, Half>::value) {
      return convert<V>(from_half<F>(words));
    } else {
      return convert<V>(from_bfloat16<F>(words));
    }
  } else {
    Rebind<V, T> v;
    __builtin_memcpy(&v, p, sizeof(v));
    return convert<V>(v);
  }
}

// Rounds to nearest even; a NaN stays one. Double goes to the 16-bit types by way of float.
template <class T, class V>
GMFAST_HD void store(T* p, V v) {
  using F = Rebind<V, float>;
  if constexpr (std::is_same<T, Half>::value) {
    const Words<V> words = to_half<F>(convert<F>(v));
    __builtin_memcpy(p, &words, sizeof(words));
  } else if constexpr (std::is_same<T, BFloat16>::value) {
    const Words<V> words = to_bfloat16<F>(convert<F>(v));
    __builtin_memcpy(p, &words, sizeof(words));
  } else {
    const Rebind<V, T> converted = convert<Rebind<V, T>>(v);
    __builtin_memcpy(p, &converted, sizeof(converted));
  }
}

// The first `count` <= lanes<V> elements only; nothing beyond is touched. Loaded lanes beyond are
// 0.
template <class V, class T>
GMFAST_HD V load_partial(const T* p, int count) {
#if defined(__AVX512F__) && GMFAST_X86
  if constexpr (std::is_same<V, Vec<float, 16>>::value && std::is_same<T, float>::value) {
    return _mm512_maskz_loadu_ps(__mmask16((1u << count) - 1), p);
  } else if constexpr (std::is_same<V, Vec<double, 8>>::value && std::is_same<T, double>::value) {
    return _mm512_maskz_loadu_pd(__mmask8((1u << count) - 1), p);
  }
#endif
  T buffer[lanes<V>] = {};
  for (int i = 0; i < count; ++i) buffer[i] = p[i];
  return load<V>(buffer);
}
template <class T, class V>
GMFAST_HD void store_partial(T* p, V v, int count) {
#if defined(__AVX512F__) && GMFAST_X86
  if constexpr (std::is_same<V, Vec<float, 16>>::value && std::is_same<T, float>::value) {
    return _mm512_mask_storeu_ps(p, __mmask16((1u << count) - 1), v);
  } else if constexpr (std::is_same<V, Vec<double, 8>>::value && std::is_same<T, double>::value) {
    return _mm512_mask_storeu_pd(p, __mmask8((1u << count) - 1), v);
  }
#endif
  T buffer[lanes<V>];
  store(buffer, v);
  for (int i = 0; i < count; ++i) p[i] = buffer[i];
}

// ---------------------------------------------------------------------------------------------
// Transposition
// ---------------------------------------------------------------------------------------------

#if !defined(__CUDACC__)

// Lane l of the exchange of two rows in blocks of S: the first result has the even blocks of both,
// the second the odd ones.
template <int S, int Odd, class V, int... L>
GMFAST_HD V exchange(V a, V b, std::integer_sequence<int, L...>) {
  return __builtin_shufflevector(a, b,
                                 (((L & S) ? int(sizeof...(L)) - S : 0) + L + (Odd ? S : 0))...);
}

template <int S, class V>
GMFAST_HD void transpose_blocks(V (&rows)[lanes<V>]) {
  // Two floats move as one double: compilers find the single instruction for that.
  constexpr int pair = is_single<V> && S > 1 ? 2 : 1;
  using W = Vec<std::conditional_t<pair == 2, double, Scalar<V>>, lanes<V> / pair>;
  using Lanes = std::make_integer_sequence<int, lanes<W>>;
  for (int i = 0; i < lanes<V>; ++i) {
    if (i & S) continue;
    const W a = W(rows[i]), b = W(rows[i + S]);
    rows[i] = V(exchange<S / pair, 0>(a, b, Lanes{}));
    rows[i + S] = V(exchange<S / pair, 1>(a, b, Lanes{}));
  }
  if constexpr (S > 1) transpose_blocks<S / 2>(rows);
}

// rows[i][j] becomes rows[j][i], in log2(lanes) stages that each exchange blocks of half the size.
template <class V>
GMFAST_HD void transpose(V (&rows)[lanes<V>]) {
  transpose_blocks<lanes<V> / 2>(rows);
}

#endif

}  // namespace GMFAST_LEVEL
}  // namespace gmfast
