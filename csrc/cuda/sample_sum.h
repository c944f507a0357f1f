// A sum over each sample of a batch, in the launch that computes what is summed:
//
//   __global__ void __launch_bounds__(sample_sum_threads) kernel(Args args, SampleSum sum) {
//     const SampleShare share(sum);
//     double partial = 0;
//     for (int64_t i = share.first; i < share.end; i += share.step) partial += ...;
//     sum_of_sample(sum, share, partial, [&](double total) { args.log_det[share.sample] = total;
//     });
//   }
//   launch_sample_sum(kernel, sum, stream, args);
#pragma once

#include "../sample_sum.h"
#include "launch.h"

namespace gmfast {

// The items first, first + step, ... of a sample that are the calling thread's; none where the
// thread has no sample.
struct SampleShare {
  int64_t sample, segment;
  int64_t first, end, step;

  GMFAST_DEVICE explicit SampleShare(const SampleSum& sum) {
    if (sum.lanes == sample_sum_threads) {
      sample = sum.segments == 1 ? block_index() : block_index() / sum.segments;
      segment = block_index() - sample * sum.segments;
      const int64_t start = segment * sum.segment, rest = sum.length - start;
      first = start + thread_index();
      end = start + (sum.segments == 1 || rest < sum.segment ? rest : sum.segment);
    } else {
      sample = block_index() * (sample_sum_threads / sum.lanes) + thread_index() / sum.lanes;
      segment = 0;
      first = thread_index() % sum.lanes;
      end = sample < sum.samples ? sum.length : 0;
    }
    step = sum.lanes;
  }
};

// Adds what the threads of a sample bring, in an order that depends on the sample's length alone,
// and has one of them call write(total). All threads of the block must call.
template <class Write>
GMFAST_DEVICE void sum_of_sample(const SampleSum& sum, const SampleShare& share, double partial,
                                 const Write& write) {
  if (sum.lanes != sample_sum_threads) {
    for (int distance = sum.lanes / 2; distance > 0; distance /= 2) {
      partial += __shfl_xor_sync(0xffffffffu, partial, distance);
    }
    if (share.sample < sum.samples && thread_index() % sum.lanes == 0) write(partial);
    return;
  }
  double total = block_sum<sample_sum_threads>(partial);
  if (sum.segments > 1) {
    double* sums = static_cast<double*>(sum.scratch) + share.sample * sum.segments;
    __shared__ bool last;
    if (thread_index() == 0) {
      unsigned* finished = reinterpret_cast<unsigned*>(static_cast<double*>(sum.scratch) +
                                                       sum.samples * sum.segments);
      sums[share.segment] = total;
      __threadfence();  // the sum is seen by whoever sees the count
      last = atomicAdd(finished + share.sample, 1u) == unsigned(sum.segments - 1);
      __threadfence();  // by the thread that saw the count: the barrier passes it on to the others
    }
    __syncthreads();
    if (!last) return;
    total = 0;
    for (int64_t i = thread_index(); i < sum.segments; i += sample_sum_threads) total += sums[i];
    total = block_sum<sample_sum_threads>(total);
  }
  if (thread_index() == 0) write(total);
}

// Launches kernel(args..., sum) on the blocks that `sum` wants, its counters zeroed before.
template <class... P, class... Args>
void launch_sample_sum(void (*kernel)(P...), const SampleSum& sum, void* stream,
                       const Args&... args) {
  if (sum.segments > 1 && sum.samples > 0) {
    fill_zero(static_cast<double*>(sum.scratch) + sum.samples * sum.segments,
              sum.samples * sizeof(unsigned), stream);
  }
  launch(kernel, sum.blocks(), sample_sum_threads, 0, stream, args..., sum);
}

}  // namespace gmfast
