// Declaring and defining kernels. csrc/args/STEM.h declares an operation's kernels beside their
// arguments, csrc/cpu/STEM.cpp and csrc/cuda/STEM.cu define them, csrc/ops/STEM.cpp calls them:
//
//   GMFAST_KERNEL(gated_activation, GatedActivation);                              // args
//   GMFAST_DEFINE_CPU_KERNEL(gated_activation, GatedActivation) { ... args ... }   // cpu
//   void gated_activation_cuda(const GatedActivation& args, void* stream) { ... }  // cuda
//   GMFAST_RUN(gated_activation, tensor, args);                                    // ops
//
// CPU kernels are compiled once per SIMD level, as NAME_v2, NAME_v3 and NAME_v4 on x86-64 and as
// NAME_native elsewhere; NAME_cpu calls the one of the level in use.
#pragma once

namespace gmfast {

enum class CpuLevel { native, v2, v3, v4 };

// The level in use: the machine's best, or GMFAST_CPU_ISA (v2, v3, v4) where it is set and lower.
__attribute__((visibility("default"))) CpuLevel cpu_level();

}  // namespace gmfast

#if defined(__x86_64__)
#define GMFAST_CPU_KERNEL(name, Args)        \
  void name##_v2(const Args& args);          \
  void name##_v3(const Args& args);          \
  void name##_v4(const Args& args);          \
  inline void name##_cpu(const Args& args) { \
    switch (cpu_level()) {                   \
      case CpuLevel::v4:                     \
        return name##_v4(args);              \
      case CpuLevel::v3:                     \
        return name##_v3(args);              \
      default:                               \
        return name##_v2(args);              \
    }                                        \
  }                                          \
  static_assert(true, "wants a semicolon")
#else
#define GMFAST_CPU_KERNEL(name, Args)                               \
  void name##_native(const Args& args);                             \
  inline void name##_cpu(const Args& args) { name##_native(args); } \
  static_assert(true, "wants a semicolon")
#endif

// Declares the kernels of both backends.
#define GMFAST_KERNEL(name, Args)                   \
  void name##_cuda(const Args& args, void* stream); \
  GMFAST_CPU_KERNEL(name, Args)

#define GMFAST_JOIN_(a, b) a##_##b
#define GMFAST_JOIN(a, b) GMFAST_JOIN_(a, b)
#define GMFAST_DEFINE_CPU_KERNEL(name, Args) void GMFAST_JOIN(name, GMFAST_LEVEL)(const Args& args)
