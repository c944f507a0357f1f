// What csrc/noise.h describes, for one sample.
#pragma once

#include "../noise.h"
#include "random.h"

namespace gmfast {
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
