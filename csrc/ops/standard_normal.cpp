#include "../args/standard_normal.h"

#include "backend.h"
#include "noise.h"

namespace gmfast {
namespace {

Tensor standard_normal(const Tensor& seed, Sizes size, ScalarType dtype, int64_t first) {
  StandardNormal args{};
  STD_TORCH_CHECK(!size.empty(), "shape: expected (B, *S)");
  args.seeds = seeds_of(seed, seed, size[0], first);
  Tensor out = empty_contiguous(seed, size, dtype);
  args.batch = size[0];
  args.elements = 1;
  for (size_t d = 1; d < size.size(); ++d) args.elements *= size[d];
  args.out = out.data_ptr();
  args.dtype = dtype_of(out);
  GMFAST_RUN(standard_normal, seed, args);
  return out;
}

}  // namespace
}  // namespace gmfast

STABLE_TORCH_LIBRARY_FRAGMENT(gmfast, m) {
  m.def("standard_normal(Tensor seed, SymInt[] size, ScalarType dtype, int first=0) -> Tensor");
}

GMFAST_REGISTER(m) { m.impl("standard_normal", TORCH_BOX(&gmfast::standard_normal)); }
