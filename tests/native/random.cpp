// csrc/math/philox.h and random.h over arrays, for tests/math/test_philox.py.
#include "csrc/math/random.h"

#include <cstdint>

namespace {

using namespace gmfast;

// words[4 i + k] is word k of block position + i.
template <class V>
void write_words(Stream stream, uint64_t position, int64_t count, uint32_t* words) {
  for (int64_t i = 0; i < count; i += lanes<V>) {
    const auto block = random_words<V>(stream, position + i);
    for (int k = 0; k < 4; ++k) {
      uint32_t lane[lanes<V>];
      store(lane, block.word[k]);
      for (int j = 0; j < lanes<V>; ++j) words[4 * (i + j) + k] = lane[j];
    }
  }
}

}  // namespace

extern "C" void philox_block(const uint32_t* counter, uint64_t key, uint32_t* words) {
  const auto block = philox(Block<uint32_t>{{counter[0], counter[1], counter[2], counter[3]}}, key);
  for (int k = 0; k < 4; ++k) words[k] = block.word[k];
}

#define DEFINE(T)                                                                             \
  extern "C" void words_##T(uint64_t seed, uint32_t sample, uint32_t draw, uint64_t position, \
                            int64_t count, uint32_t* words, bool vector) {                    \
    const Stream stream = {seed, sample, draw};                                               \
    vector ? write_words<Native<T>>(stream, position, count, words)                           \
           : write_words<T>(stream, position, count, words);                                  \
  }                                                                                           \
  extern "C" void uniform_##T(uint64_t seed, uint32_t sample, uint32_t draw, uint64_t first,  \
                              int64_t count, T* out, bool vector) {                           \
    const Stream stream = {seed, sample, draw};                                               \
    vector ? fill_uniform<Native<T>>(stream, first, out, count)                               \
           : fill_uniform<T>(stream, first, out, count);                                      \
  }                                                                                           \
  extern "C" void normal_##T(uint64_t seed, uint32_t sample, uint32_t draw, uint64_t first,   \
                             int64_t count, T* out, bool vector) {                            \
    const Stream stream = {seed, sample, draw};                                               \
    vector ? fill_normal<Native<T>>(stream, first, out, count)                                \
           : fill_normal<T>(stream, first, out, count);                                       \
  }                                                                                           \
  extern "C" T uniform_at_##T(uint64_t seed, uint32_t sample, uint32_t draw, uint64_t e) {    \
    return uniform_at<T>(Stream{seed, sample, draw}, e);                                      \
  }                                                                                           \
  extern "C" T normal_at_##T(uint64_t seed, uint32_t sample, uint32_t draw, uint64_t e) {     \
    return normal_at<T>(Stream{seed, sample, draw}, e);                                       \
  }
DEFINE(float)
DEFINE(double)

extern "C" float uniform_of_bits_float(uint32_t word) { return uniform_of_bits<float>(word); }
extern "C" double uniform_of_bits_double(uint64_t word) { return uniform_of_bits<double>(word); }
