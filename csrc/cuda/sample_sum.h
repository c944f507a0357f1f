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

#include "../common/sample_sum.h"
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

// Adds what the threads of a sample bring, `count` = sum.sums numbers each, in an order that
// depends on the sample's length alone, and has one of them call write(totals). All threads of the
// block must call.
template <int count, class Write>
GMFAST_DEVICE void sum_of_sample(const SampleSum& sum, const SampleShare& share,
                                 double (&partial)[count], const Write& write) {
  if (sum.lanes != sample_sum_threads) {
    GMFAST_UNROLL
    for (int q = 0; q < count; ++q) {
      for (int distance = sum.lanes / 2; distance > 0; distance /= 2) {
        partial[q] += __shfl_xor_sync(0xffffffffu, partial[q], distance);
      }
    }
    if (share.sample < sum.samples && thread_index() % sum.lanes == 0) write(partial);
    return;
  }
  double totals[count];
  GMFAST_UNROLL
  for (int q = 0; q < count; ++q) totals[q] = block_sum<sample_sum_threads>(partial[q]);
  if (sum.segments > 1) {
    double* sums = static_cast<double*>(sum.scratch) + share.sample * (count * sum.segments);
    __shared__ bool last;
    if (thread_index() == 0) {
      unsigned* finished = reinterpret_cast<unsigned*>(static_cast<double*>(sum.scratch) +
                                                       sum.samples * (count * sum.segments));
      GMFAST_UNROLL
      for (int q = 0; q < count; ++q) sums[q * sum.segments + share.segment] = totals[q];
      __threadfence();  // the sums are seen by whoever sees the count
      last = atomicAdd(finished + share.sample, 1u) == unsigned(sum.segments - 1);
      __threadfence();  // by the thread that saw the count: the barrier passes it on to the others
    }
    __syncthreads();
    if (!last) return;
    GMFAST_UNROLL
    for (int q = 0; q < count; ++q) {
      double total = 0;
      for (int64_t i = thread_index(); i < sum.segments; i += sample_sum_threads) {
        total += sums[q * sum.segments + i];
      }
      totals[q] = block_sum<sample_sum_threads>(total);
    }
  }
  if (thread_index() == 0) write(totals);
}

// One number.
template <class Write>
GMFAST_DEVICE void sum_of_sample(const SampleSum& sum, const SampleShare& share, double partial,
                                 const Write& write) {
  double partials[1] = {partial};
  sum_of_sample<1>(sum, share, partials, [&](const double (&totals)[1]) { write(totals[0]); });
}

// Launches kernel(args..., sum) on the blocks that `sum` wants, its counters zeroed before.
template <class... P, class... Args>
void launch_sample_sum(void (*kernel)(P...), const SampleSum& sum, void* stream,
                       const Args&... args) {
  if (sum.segments > 1 && sum.samples > 0) {
    fill_zero(static_cast<double*>(sum.scratch) + sum.samples * (sum.sums * sum.segments),
              sum.samples * sizeof(unsigned), stream);
  }
  launch(kernel, sum.blocks(), sample_sum_threads, 0, stream, args..., sum);
}

}  // namespace gmfast
