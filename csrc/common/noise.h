#pragma once

#include <cstdint>

#include "../math/random.h"
#include "rows.h"

namespace gmfast {

// What the noise of a batch is drawn of: of one seed, or each sample of its own seed, of which it
// is sample 0.
struct Seeds {
  const int64_t* data = nullptr;  // on the device of the tensors; null: `value`
  int64_t stride = 0, value = 0;
  bool own = false;
};

// A normal number for each element of a walk: given, or drawn.
struct Noise {
  RowOperand given;  // data null: drawn, or with no seed's data either 0
  Seeds seeds;
  uint32_t draw = 0;
  int64_t channels =
      1;  // innermost in the walk though not in the noise's order; 1: the orders are one

  bool drawn() const { return seeds.data && !given.data; }
};

// A number for each sample of a batch, or one for all.
struct PerSample {
  const void* data = nullptr;  // null: `value`
  DType dtype = DType::float32;
  int64_t stride = 0;
  double value = 0;
};

inline namespace GMFAST_LEVEL {

GMFAST_HD Stream stream_of(const Seeds& seeds, int64_t sample, uint32_t draw) {
  const int64_t seed = seeds.data ? seeds.data[sample * seeds.stride] : seeds.value;
  return {uint64_t(seed), seeds.own ? 0 : uint32_t(sample), draw};
}
GMFAST_HD Stream stream_of(const Noise& noise, int64_t sample) {
  return stream_of(noise.seeds, sample, noise.draw);
}

// Where in the walk of a sample is what the noise counts as its `element`.
GMFAST_HD int64_t place_in_walk(const Noise& noise, int64_t element, int64_t elements) {
  if (noise.channels == 1) return element;
  const int64_t pixels = elements / noise.channels, channel = element / pixels;
  return (element - channel * pixels) * noise.channels + channel;
}

GMFAST_HD double number_of(const PerSample& numbers, int64_t sample) {
  if (!numbers.data) return numbers.value;
  const int64_t index = sample * numbers.stride;
  switch (numbers.dtype) {
    case DType::bfloat16: {
      const BFloat16 number = static_cast<const BFloat16*>(numbers.data)[index];
      return double(load<float>(&number));
    }
    case DType::float16: {
      const Half number = static_cast<const Half*>(numbers.data)[index];
      return double(load<float>(&number));
    }
    case DType::float64:
      return static_cast<const double*>(numbers.data)[index];
    default:
      return double(static_cast<const float*>(numbers.data)[index]);
  }
}

}  // namespace GMFAST_LEVEL
}  // namespace gmfast
