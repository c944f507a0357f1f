#include "../args/torch_normal.h"

#include "backend.h"
#include "layout.h"

namespace gmfast {
namespace {

Tensor torch_normal(const Tensor& state, Sizes size) {
  STD_TORCH_CHECK(state.scalar_type() == ScalarType::Byte && state.dim() == 1 &&
                      state.stride(0) == 1 && state.size(0) >= int64_t(sizeof(GeneratorState)),
                  "state: expected what get_state() of a generator on the CPU returns");
  TorchNormal args{};
  args.state = static_cast<GeneratorState*>(state.data_ptr());
  const int64_t left = args.state->left;
  STD_TORCH_CHECK(left >= 1 && left <= twister_words && args.state->next <= twister_words &&
                      int64_t(args.state->next) + left - 1 <= twister_words,
                  "state: expected that of a Mersenne Twister");
  args.count = 1;
  for (int64_t n : size) args.count *= n;
  STD_TORCH_CHECK(args.count >= 16, "size: expected 16 numbers or more, got ", args.count);
  Tensor out = empty_contiguous(state, size, ScalarType::Float);
  args.out = static_cast<float*>(out.data_ptr());
  torch_normal_cpu(args);
  return out;
}

}  // namespace
}  // namespace gmfast

STABLE_TORCH_LIBRARY_FRAGMENT(gmfast, m) {
  m.def("torch_normal(Tensor(a!) state, SymInt[] size) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(gmfast, CPU, m) {
  m.impl("torch_normal", TORCH_BOX(&gmfast::torch_normal));
}
