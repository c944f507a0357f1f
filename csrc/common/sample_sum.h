// How a CUDA kernel that sums over each sample of a batch in its one launch divides the work.
// csrc/cuda/sample_sum.h has the device's side.
#pragma once

#include <cstdint>

namespace gmfast {

constexpr int sample_sum_threads = 256;  // of a block

// Nothing but a sample's length decides how it is divided, so its sum has the same bits in any
// batch. Of a long sample each block takes a segment; the last to finish adds their sums. Short
// samples share a block.
struct SampleSum {
  int64_t samples = 0;
  int64_t length = 0;              // items of a sample: elements, packs, pixels
  int64_t segment = 0;             // items of a block, where a sample has several
  int64_t segments = 1;            // of a sample
  int lanes = sample_sum_threads;  // threads of a sample: all of a block's, or a power of two to 32
  int sums = 1;                    // of a sample
  void* scratch = nullptr;         // on the device, aligned to 8 bytes

  // `items` is what a thread should have to do: the fewer, the more expensive one is.
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

  // What `scratch` must hold: the sums of each block, a counter for each sample. 0 for short
  // samples.
  int64_t scratch_bytes() const { return segments > 1 ? samples * 8 * (sums * segments + 1) : 0; }
};

}  // namespace gmfast
