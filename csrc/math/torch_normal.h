// The normal numbers of torch's generator on the CPU, from its random words: Matsumoto and
// Nishimura's Mersenne Twister (1998), 24 bits of a word for a uniform number, Box and Muller's
// transform.
#pragma once

#include "elementary.h"

namespace gmfast {
inline namespace GMFAST_LEVEL {

// The twister's next word x[n], of x[n - 624], x[n - 623] and x[n - 227].
template <class U>
GMFAST_HD U twisted(U first, U second, U middle) {
  const U mixed = (first & 0x80000000u) | (second & 0x7fffffffu);
  return middle ^ (mixed >> 1) ^ ((splat<U>(0) - (second & 1u)) & 0x9908b0dfu);
}

// What the twister returns for a word of its state.
template <class U>
GMFAST_HD U tempered(U word) {
  word ^= word >> 11;
  word ^= (word << 7) & 0x9d2c5680u;
  word ^= (word << 15) & 0xefc60000u;
  return word ^ (word >> 18);
}

// sqrt(-2 log(1 - u)) cos(2 pi v) and the same with sin, of the lower 24 bits of two words. The
// angle is rounded to float as torch rounds it, which moves the numbers by more than all else does.
template <class V>
GMFAST_HD void torch_normal_pair(Rebind<V, uint32_t> a, Rebind<V, uint32_t> b, V* x, V* y) {
  using I = Integer<V>;
  using U = UnsignedInteger<V>;
  const U low = a & 0xffffffu, angle = b & 0xffffffu;
  const V from_one = convert<V>(bit_cast<I>(0x1000000u - low)) * splat<V>(0x1p-24f);  // exact
  const V radius = sqrt(splat<V>(-2) * log_positive(from_one));
  const V theta = convert<V>(bit_cast<I>(angle)) * splat<V>(0x1p-24f) * splat<V>(6.28318548f);
  // theta = n pi + t, |t| <= pi/2: exact up to the last sum, as pi's first part has 14 bits.
  const U n = (angle + 0x400000u) >> 23;
  const V turns = convert<V>(bit_cast<I>(n));
  const V t = fma(turns, splat<V>(8.90890988e-06f), fma(turns, splat<V>(-3.1416015625f), theta));
  const V turned = bit_cast<V>(bit_cast<U>(radius) ^ (n << 31));
  const V z = t * t;
  // (sin t - t)/t^3 and (cos t - 1)/t^2 in t^2, fitted for the absolute error of sin and cos: 2^-27
  // and 2^-31.
  const V sine = polynomial<V>(z, 2.60005481e-06f, -0.000198066147f, 0.00833301712f, -0.166666567f);
  const V cosine =
      polynomial<V>(z, -2.6077106e-07f, 2.47618864e-05f, -0.00138884038f, 0.0416666418f, -0.5f);
  *x = turned * fma(z, cosine, splat<V>(1));
  *y = turned * fma(t * z, sine, t);
}

}  // namespace GMFAST_LEVEL
}  // namespace gmfast
