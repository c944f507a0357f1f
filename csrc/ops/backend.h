// The choice of backend: a tensor's device decides, and the build decides which devices there are.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

namespace gmfast {

// Torch's current CUDA stream on the tensor's device.
void* current_stream(const torch::stable::Tensor& tensor);

}  // namespace gmfast

// Both devices run the same function; inside it GMFAST_RUN picks NAME_cpu or NAME_cuda.
#ifdef GMFAST_CUDA
#define GMFAST_RUN(name, tensor, args)                                                  \
  do {                                                                                  \
    if ((tensor).is_cuda()) {                                                           \
      const torch::stable::accelerator::DeviceGuard guard((tensor).get_device_index()); \
      name##_cuda(args, current_stream(tensor));                                        \
    } else {                                                                            \
      name##_cpu(args);                                                                 \
    }                                                                                   \
  } while (false)
#define GMFAST_REGISTER(m)                                             \
  static void register_kernels(torch::stable::detail::StableLibrary&); \
  STABLE_TORCH_LIBRARY_IMPL(gmfast, CPU, m) { register_kernels(m); }   \
  STABLE_TORCH_LIBRARY_IMPL(gmfast, CUDA, m) { register_kernels(m); }  \
  static void register_kernels(torch::stable::detail::StableLibrary& m)
#else
#define GMFAST_RUN(name, tensor, args) name##_cpu(args)
#define GMFAST_REGISTER(m) STABLE_TORCH_LIBRARY_IMPL(gmfast, CPU, m)
#endif
