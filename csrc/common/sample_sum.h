// Division of a CUDA kernel's work for sums over each sample of a batch within its one launch;
// csrc/cuda/sample_sum.h is the device's side.
#pragma once

#include <cstdint>

namespace gmfast {

constexpr int sample_sum_threads = 256;  // per block

// The division depends on a sample's length alone, so its sum has the same bits in any batch. A
// long sample is divided into segments, a block each, and the last block to finish adds their sums.
// Short samples share a block.
struct SampleSum {
  int64_t samples = 0;
  int64_t length = 0;              // items per sample: elements, packs, pixels
  int64_t segment = 0;             // items per segment
  int64_t segments = 1;            // per sample
  int lanes = sample_sum_threads;  // threads per sample: a whole block, or a power of two up to 32
  int sums = 1;                    // per sample
  void* scratch = nullptr;         // on the device, aligned to 8 bytes

  // `items` per thread: the more expensive an item, the fewer.
  SampleSum() = default;
  SampleSum(int64_t samples, int64_t length, int64_t items, int sums = 1)
      : samples(samples), length(length), sums(sums) {
    segment = sample_sum_threads * items;
    if (length > segment) {
      segments = (length + segment - 1) / segment;
    } else if (length <= 32 * items) {
      lanes = 1;
      while (lanes < 32 && lanes * items < length) lanes *= 2;
    }
  }

  int64_t blocks() const {
    const int64_t samples_of_block = sample_sum_threads / lanes;
    return segments * ((samples + samples_of_block - 1) / samples_of_block);
  }

  // Bytes of `scratch`: the sums of each segment, and a counter per sample; 0 for short samples.
  int64_t scratch_bytes() const { return segments > 1 ? samples * 8 * (sums * segments + 1) : 0; }
};

}  // namespace gmfast
