// Philox 4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3",
// 2011): a bijection of 128-bit counters keyed by 64 bits. Every block of four random words is
// computed from its counter alone, so any thread of any device can make any part of the stream.
#pragma once

#include "simd.h"

namespace gmfast {
inline namespace GMFAST_LEVEL {

// Four words; with U a vector, four words in each lane.
template <class U>
struct Block {
  U word[4];
};

// The upper and lower half of a 32x32-bit product.
template <class W>
struct Product {
  W high, low;
};

GMFAST_HD Product<uint32_t> multiply(uint32_t a, uint32_t b) {
  const uint64_t product = uint64_t(a) * b;
  return {uint32_t(product >> 32), uint32_t(product)};
}

#if !defined(__CUDACC__)

// Each 64-bit lane's upper half in place of the lower. A shuffle, because the multiplications
// already keep the port busy that would shift.
template <class W, int... I>
GMFAST_HD W upper_halves(W v, std::integer_sequence<int, I...>) {
  using U = Vec<uint32_t, 2 * lanes<W>>;
  const U words = bit_cast<U>(v);
  return bit_cast<W>(__builtin_shufflevector(words, words, (I | 1)...));
}
template <class W>
GMFAST_HD W upper_halves(W v) {
  return upper_halves(v, std::make_integer_sequence<int, 2 * lanes<W>>{});
}

// Vectors hold a word in the lower half of each 64-bit lane. What is in the upper half does not
// matter: the multiplication ignores it, so a product serves as its own lower half.
template <class W>
GMFAST_HD Product<W> multiply(W a, uint32_t b) {
  W product;
  const W wide_b = splat<W>(b);
#if GMFAST_X86
  // Named, because a plain 64-bit vector multiplication is several instructions.
  if constexpr (sizeof(W) == 16) {
    product = W(_mm_mul_epu32(__m128i(a), __m128i(wide_b)));
#if defined(__AVX2__)
  } else if constexpr (sizeof(W) == 32) {
    product = W(_mm256_mul_epu32(__m256i(a), __m256i(wide_b)));
#endif
#if defined(__AVX512F__)
  } else if constexpr (sizeof(W) == 64) {
    product = W(_mm512_maskz_mul_epu32(-1, __m512i(a), __m512i(wide_b)));
#endif
  }
#else
  product = (a & 0xffffffffu) * wide_b;
#endif
  return {upper_halves(product), product};
}

#endif

template <int Round = 0, class W>
GMFAST_HD Block<W> philox_rounds(Block<W> x, uint32_t key_low, uint32_t key_high) {
  if constexpr (Round == 10) {
    return x;
  } else {
    const Product<W> a = multiply(x.word[0], 0xD2511F53u);
    const Product<W> b = multiply(x.word[2], 0xCD9E8D57u);
    const Block<W> y = {{b.high ^ x.word[1] ^ splat<W>(key_low), b.low,
                         a.high ^ x.word[3] ^ splat<W>(key_high), a.low}};
    return philox_rounds<Round + 1>(y, key_low + 0x9E3779B9u, key_high + 0xBB67AE85u);
  }
}

// The block of each counter under `key`. U is uint32_t or a vector of it.
template <class U>
GMFAST_HD Block<U> philox(Block<U> counter, uint64_t key) {
  const uint32_t low = uint32_t(key), high = uint32_t(key >> 32);
  if constexpr (is_scalar<U>) {
    return philox_rounds(counter, low, high);
#if !defined(__CUDACC__)
  } else if constexpr (2 * sizeof(U) <= native_bytes) {
    using W = Vec<uint64_t, lanes<U>>;
    Block<W> wide;
    for (int i = 0; i < 4; ++i) wide.word[i] = convert<W>(counter.word[i]);
    wide = philox_rounds(wide, low, high);
    Block<U> result;
    for (int i = 0; i < 4; ++i) result.word[i] = convert<U>(wide.word[i]);
    return result;
  } else {
    using W = Vec<uint64_t, lanes<U> / 2>;
    Block<W> even, odd;
    for (int i = 0; i < 4; ++i) {
      even.word[i] = bit_cast<W>(counter.word[i]);
      odd.word[i] = even.word[i] >> 32;
    }
    even = philox_rounds(even, low, high);
    odd = philox_rounds(odd, low, high);
    Block<U> result;
    for (int i = 0; i < 4; ++i) {
      result.word[i] = bit_cast<U>((even.word[i] & 0xffffffffu) | (odd.word[i] << 32));
    }
    return result;
#endif
  }
}

}  // namespace GMFAST_LEVEL
}  // namespace gmfast
