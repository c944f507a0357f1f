#include "backend.h"

#include <torch/csrc/stable/ops.h>
#ifdef GMFAST_CUDA
#include <dlfcn.h>
#endif

#include "../common/parallel.h"
#include "error.h"

namespace gmfast {

void parallel_for(int64_t count, int64_t grain, void (*body)(int64_t, int64_t, void*),
                  void* context) {
  if (count > 0) STABLE_TORCH_ERROR_CODE_CHECK(torch_parallel_for(0, count, grain, body, context));
}

#ifdef GMFAST_CUDA
void* current_stream(const torch::stable::Tensor& tensor) {
  // The symbol is in libtorch_cuda, which a CPU build of torch does not have: looked up when first
  // needed, when a CUDA tensor proves that the library is loaded.
  using Lookup = AOTITorchError (*)(int32_t, void**);
  static const Lookup lookup = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return reinterpret_cast<Lookup>(library ? dlsym(library, "aoti_torch_get_current_cuda_stream")
                                            : nullptr);
  }();
  STD_TORCH_CHECK(lookup, "gmfast found no CUDA stream in this build of torch");
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(lookup(tensor.get_device_index(), &stream));
  return stream;
}
#endif

}  // namespace gmfast
