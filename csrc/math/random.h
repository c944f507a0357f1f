// Noise that depends only on where it is: a number is a function of (seed, sample, position, draw),
// the same for every batch size, thread count and SIMD level, and to rounding on every device.
//
// One Philox block, keyed by the seed, has the counter (position's low and high 32 bits, sample,
// draw) and gives four numbers in float, two in double. Use it in one of two ways:
//
// * Several numbers for each position: uniforms<V>(stream, position) and normals<V>(stream,
//   position) fill lane i for position + i. Where one block is not enough, take further draws.
// * One number for each element of an array: block_of<V>(element) and slot_of<V>(element) say which
//   block and which of its numbers. Sixteen consecutive elements lie in sixteen consecutive blocks,
//   so a vector that starts at a multiple of its lanes needs no shuffling:
//
//     normals<V>(stream, block_of<V>(e)).value[k]   is for the elements   e + 16 k + lane
//
//   where e / 16 is a multiple of numbers_per_block<V>. noise_tile<V> elements use up whole blocks.
#pragma once

#include "elementary.h"
#include "philox.h"

namespace gmfast {
inline namespace GMFAST_LEVEL {

struct Stream {
  uint64_t seed;
  uint32_t sample;
  uint32_t draw;
};

template <class V>
constexpr int numbers_per_block = is_single<V> ? 4 : 2;
template <class V>
constexpr int noise_tile = 16 * numbers_per_block<V>;

template <class V>
struct Numbers {
  V value[numbers_per_block<V>];
};

template <class V>
GMFAST_HD uint64_t block_of(uint64_t element) {
  return element / noise_tile<V> * 16 + element % 16;
}
template <class V>
GMFAST_HD int slot_of(uint64_t element) {
  return int(element / 16 % numbers_per_block<V>);
}

// The random words of the blocks position + lane.
template <class V>
GMFAST_HD Block<Rebind<V, uint32_t>> random_words(Stream stream, uint64_t position) {
  using U = Rebind<V, uint32_t>;
  const U first = splat<U>(uint32_t(position));
  const U low = first + iota<U>();
  const U high =
      splat<U>(uint32_t(position >> 32)) + select<U>(low < first, splat<U>(1), splat<U>(0));
  const Block<U> counter = {{low, high, splat<U>(stream.sample), splat<U>(stream.draw)}};
  return philox(counter, stream.seed);
}

// The 64-bit integers with the given halves.
template <class V>
GMFAST_HD Rebind<V, uint64_t> join_words(Rebind<V, uint32_t> low, Rebind<V, uint32_t> high) {
  using W = Rebind<V, uint64_t>;
  return convert<W>(low) | (convert<W>(high) << 32);
}

// The centre of one of 2^23 (double: 2^52) equal parts of (0, 1), named by the upper bits: never 0
// nor 1, and exact. The bits become the mantissa of a number in [1, 2).
template <class V>
GMFAST_HD V uniform_of_bits(UnsignedInteger<V> word) {
  using U = UnsignedInteger<V>;
  using S = Scalar<V>;
  constexpr int mantissa_bits = Format<V>::mantissa_bits;
  const U one = bit_cast<U>(splat<V>(1));
  const V from_one = bit_cast<V>((word >> (8 * int(sizeof(S)) - mantissa_bits)) | one);
  return from_one - splat<V>(is_single<V> ? S(1 - 0x1p-24) : S(1 - 0x1p-53));
}

// Uniform numbers in the open interval (0, 1).
template <class V>
GMFAST_HD Numbers<V> uniforms(Stream stream, uint64_t position) {
  const auto words = random_words<V>(stream, position);
  Numbers<V> numbers;
  if constexpr (is_single<V>) {
    for (int i = 0; i < 4; ++i) numbers.value[i] = uniform_of_bits<V>(words.word[i]);
  } else {
    for (int i = 0; i < 2; ++i) {
      numbers.value[i] =
          uniform_of_bits<V>(join_words<V>(words.word[2 * i], words.word[2 * i + 1]));
    }
  }
  return numbers;
}

// Two normal numbers of two words, after Box and Muller.
template <class V>
GMFAST_HD void normal_pair(Rebind<V, uint32_t> a, Rebind<V, uint32_t> b, V* x, V* y) {
  static_assert(is_single<V>, "a pair of doubles takes four words");
  using I = Integer<V>;
  using U = UnsignedInteger<V>;
  // The radius from 31 bits rounded to float, as fine near 0 as that is, so that normal numbers
  // reach 6.6. Near 1 it is coarser, and may be 1.
  const V u = fma(convert<V>(bit_cast<I>(a >> 1)), splat<V>(0x1p-31f), splat<V>(0x1p-32f));
  const V radius = sqrt(splat<V>(-2) * log_positive(u));
  // The angle pi r on the right half of the circle, |r| <= 1/2; the last bit turns it around.
  const V r = convert<V>(bit_cast<I>(b)) * splat<V>(0x1p-32f);
  const V turned = bit_cast<V>(bit_cast<U>(radius) ^ (b << 31));
  const V z = r * r;
  // sin(pi r)/r and (cos(pi r) - 1)/r^2 in r^2, fitted for their absolute error: 2^-24 and 2^-30.
  const V sine =
      polynomial<V>(z, 0.0772338137f, -0.598053098f, 2.55003285f, -5.16770697f, 3.14159274f);
  const V cosine =
      polynomial<V>(z, -0.0239637811f, 0.234683752f, -1.33516157f, 4.05870533f, -4.93480206f);
  *x = turned * fma(z, cosine, splat<V>(1));
  *y = turned * (r * sine);
}

// Standard normal numbers.
template <class V>
GMFAST_HD Numbers<V> normals(Stream stream, uint64_t position) {
  const auto words = random_words<V>(stream, position);
  Numbers<V> numbers;
  if constexpr (is_single<V>) {
    normal_pair<V>(words.word[0], words.word[1], &numbers.value[0], &numbers.value[1]);
    normal_pair<V>(words.word[2], words.word[3], &numbers.value[2], &numbers.value[3]);
  } else {
    const V u = uniform_of_bits<V>(join_words<V>(words.word[0], words.word[1]));
    const V angle = uniform_of_bits<V>(join_words<V>(words.word[2], words.word[3]));
    const V radius = sqrt(splat<V>(-2) * log_positive(u));
    V sine, cosine;
    sincospi(angle + angle, &sine, &cosine);
    numbers.value[0] = radius * cosine;
    numbers.value[1] = radius * sine;
  }
  return numbers;
}

// The number for one element of an array, by itself.
template <class T>
GMFAST_HD T pick(Numbers<T> numbers, int slot) {
  // No loop: of `slot == i` compilers make an index, and an array that has one is in memory.
  const bool odd = slot & 1;
  const T low = odd ? numbers.value[1] : numbers.value[0];
  if constexpr (!is_single<T>) return low;
  constexpr int last = numbers_per_block<T> - 1;
  const T high = odd ? numbers.value[last] : numbers.value[last - 1];
  return slot & 2 ? high : low;
}
template <class T>
GMFAST_HD T uniform_at(Stream stream, uint64_t element) {
  return pick(uniforms<T>(stream, block_of<T>(element)), slot_of<T>(element));
}
template <class T>
GMFAST_HD T normal_at(Stream stream, uint64_t element) {
  return pick(normals<T>(stream, block_of<T>(element)), slot_of<T>(element));
}

#if !defined(__CUDACC__)

// Those of a tile that are among first, ..., end - 1.
template <class V, class T, class Generate>
__attribute__((noinline)) void fill_part_of_tile(Stream stream, uint64_t tile, uint64_t first,
                                                 uint64_t end, T* out, Generate generate) {
  for (int column = 0; column < 16; column += lanes<V>) {
    const Numbers<V> numbers = generate(stream, block_of<V>(tile + column));
    for (int slot = 0; slot < numbers_per_block<V>; ++slot) {
      const uint64_t element = tile + column + 16 * slot;
      if (element >= first && element + lanes<V> <= end) {
        store(out + (element - first), numbers.value[slot]);
        continue;
      }
      Scalar<V> buffer[lanes<V>];
      store(buffer, numbers.value[slot]);
      for (int i = 0; i < lanes<V>; ++i) {
        if (element + i >= first && element + i < end)
          store(out + (element + i - first), buffer[i]);
      }
    }
  }
}

// The numbers `generate` makes for the elements first, ..., first + count - 1.
template <class V, class T, class Generate>
GMFAST_HD void fill_noise(Stream stream, uint64_t first, T* out, int64_t count, Generate generate) {
  static_assert(16 % lanes<V> == 0, "vectors must not straddle sixteen elements");
  constexpr uint64_t tile = noise_tile<V>;
  const uint64_t end = first + uint64_t(count);
  uint64_t at = first / tile * tile;
  if (at < first) {
    fill_part_of_tile<V>(stream, at, first, end, out, generate);
    at += tile;
  }
  // Two at once: each is a long chain of instructions that wait for one another.
  for (; at + 2 * tile <= end; at += 2 * tile) {
    T* to = out + (at - first);
    for (int column = 0; column < 16; column += lanes<V>) {
      const Numbers<V> numbers = generate(stream, block_of<V>(at + column));
      const Numbers<V> next = generate(stream, block_of<V>(at + tile + column));
      for (int slot = 0; slot < numbers_per_block<V>; ++slot) {
        store(to + column + 16 * slot, numbers.value[slot]);
        store(to + tile + column + 16 * slot, next.value[slot]);
      }
    }
  }
  for (; at < end; at += tile) fill_part_of_tile<V>(stream, at, first, end, out, generate);
}

// The generators are inlined early, or the compiler does not mix the instructions of two of them.
template <class V, class T>
GMFAST_HD void fill_uniform(Stream stream, uint64_t first, T* out, int64_t count) {
  fill_noise<V>(stream, first, out, count, [](Stream s, uint64_t p) __attribute__((always_inline)) {
    return uniforms<V>(s, p);
  });
}
template <class V, class T>
GMFAST_HD void fill_normal(Stream stream, uint64_t first, T* out, int64_t count) {
  fill_noise<V>(stream, first, out, count, [](Stream s, uint64_t p) __attribute__((always_inline)) {
    return normals<V>(s, p);
  });
}

#endif

}  // namespace GMFAST_LEVEL
}  // namespace gmfast
