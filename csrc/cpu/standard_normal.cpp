#include "../args/standard_normal.h"

#include "../common/noise.h"
#include "../common/parallel.h"
#include "tile.h"

namespace gmfast {

GMFAST_DEFINE_CPU_KERNEL(standard_normal, StandardNormal) {
  with_type(args.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    using V = Native<Compute<T>>;
    constexpr int64_t piece = 8192;  // whole tiles of noise
    const int64_t pieces = (args.elements + piece - 1) / piece;
    const int64_t work = args.elements < piece ? args.elements + 16 : piece;
    parallel_for(args.batch * pieces, 16384 / work + 1, [&](int64_t begin, int64_t end) {
      for (int64_t index = begin; index < end; ++index) {
        const int64_t sample = index / pieces, first = index % pieces * piece;
        const int64_t rest = args.elements - first;
        fill_normal<V>(stream_of(args.seeds, sample, 0), uint64_t(first),
                       static_cast<T*>(args.out) + sample * args.elements + first,
                       rest < piece ? rest : piece);
      }
    });
  });
}

}  // namespace gmfast
