// Operands of noise: seeds, the noise of a walk, a value per sample.
#pragma once

#include <cstdint>

#include "../math/random.h"
#include "rows.h"

namespace gmfast {

// The seed of a batch, or one per sample. With a seed of its own, a sample has the noise of sample
// 0; else sample i of the batch has that of sample first + i, below 2^32.
struct Seeds {
  const int64_t* data = nullptr;  // on the tensors' device; null: `value`
  int64_t stride = 0, value = 0;
  int64_t first = 0;
  bool own = false;
};

// Standard normal noise for each element of a walk.
struct Noise {
  RowOperand given;  // data null: drawn from the seeds, or without their data zero
  Seeds seeds;
  uint32_t draw = 0;
  // Noise is numbered with the channels outermost. Where a walk has them innermost this is how many
  // there are, else 1.
  int64_t channels = 1;

  bool drawn() const { return seeds.data && !given.data; }
};

// One value per sample, or one for all.
struct PerSample {
  const void* data = nullptr;  // null: `value`
  DType dtype = DType::float32;
  int64_t stride = 0;
  double value = 0;
};

inline namespace GMFAST_LEVEL {

// The index in the noise of a sample of the batch.
GMFAST_HD uint32_t index_in_noise(const Seeds& seeds, int64_t sample) {
  return seeds.own ? 0 : uint32_t(seeds.first + sample);
}
GMFAST_HD Stream stream_of(const Seeds& seeds, int64_t sample, uint32_t draw) {
  const int64_t seed = seeds.data ? seeds.data[sample * seeds.stride] : seeds.value;
  return {uint64_t(seed), index_in_noise(seeds, sample), draw};
}
GMFAST_HD Stream stream_of(const Noise& noise, int64_t sample) {
  return stream_of(noise.seeds, sample, noise.draw);
}

// The place in a sample's walk of the element that the noise numbers `element`.
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
