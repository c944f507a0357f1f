#include "backend.h"

#include <torch/csrc/stable/ops.h>
#ifdef GMFAST_CUDA
#include <dlfcn.h>
#endif

#include <cstdlib>
#include <cstring>

#include "../cpu/dispatch.h"
#include "../cpu/parallel.h"
#include "error.h"

namespace gmfast {

void parallel_for(int64_t count, int64_t grain, void (*body)(int64_t, int64_t, void*),
                  void* context) {
  if (count > 0) STABLE_TORCH_ERROR_CODE_CHECK(torch_parallel_for(0, count, grain, body, context));
}

CpuLevel cpu_level() {
#if defined(__x86_64__)
  static const CpuLevel level = [] {
    const bool v3 = __builtin_cpu_supports("x86-64-v3");
    const bool v4 = __builtin_cpu_supports("x86-64-v4");
    const CpuLevel best = v4 ? CpuLevel::v4 : v3 ? CpuLevel::v3 : CpuLevel::v2;
    const char* wanted = std::getenv("GMFAST_CPU_ISA");
    const CpuLevel limit = !wanted                          ? CpuLevel::v4
                           : std::strcmp(wanted, "v2") == 0 ? CpuLevel::v2
                           : std::strcmp(wanted, "v3") == 0 ? CpuLevel::v3
                                                            : CpuLevel::v4;
    return limit < best ? limit : best;
  }();
  return level;
#else
  return CpuLevel::native;
#endif
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
