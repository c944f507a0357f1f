#include "../args/standard_normal.h"
#include "../common/noise.h"
#include "launch.h"
#include "types.h"

namespace gmfast {
namespace {

constexpr int normal_threads = 256;

// A thread makes the numbers of one block of noise, 16 elements apart.
template <class T>
__global__ void __launch_bounds__(normal_threads)
    normal_kernel(StandardNormal args, int64_t blocks_of_sample) {
  using S = Compute<T>;
  const int64_t sample = block_index() / blocks_of_sample;
  const int64_t block =
      (block_index() - sample * blocks_of_sample) * normal_threads + thread_index();
  const int64_t first = block / 16 * noise_tile<S> + block % 16;
  if (first >= args.elements) return;
  const Numbers<S> numbers = normals<S>(stream_of(args.seeds, sample, 0), uint64_t(block));
  T* out = static_cast<T*>(args.out) + sample * args.elements + first;
  GMFAST_UNROLL
  for (int slot = 0; slot < numbers_per_block<S>; ++slot) {
    if (first + slot * 16 < args.elements) store_element(out + slot * 16, numbers.value[slot]);
  }
}

}  // namespace

void standard_normal_cuda(const StandardNormal& args, void* stream) {
  with_type<double>(args.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const int64_t blocks = ceil_div(args.elements, noise_tile<Compute<T>>) * 16;
    const int64_t blocks_of_sample = ceil_div(blocks, normal_threads);
    launch(normal_kernel<T>, args.batch * blocks_of_sample, normal_threads, 0, stream, args,
           blocks_of_sample);
  });
}

}  // namespace gmfast
