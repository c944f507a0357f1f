// Kernels are compiled once per SIMD level and picked when the library is loaded. csrc/STEM.h
// declares one, csrc/cpu/STEM.cpp defines it, csrc/ops/STEM.cpp calls it:
//
//   GMFAST_CPU_KERNEL(gated_activation, GatedActivation);
//   GMFAST_DEFINE_CPU_KERNEL(gated_activation, GatedActivation) { ... args ... }
//   gated_activation_cpu(args);
#pragma once

namespace gmfast {

enum class CpuLevel { native, v2, v3, v4 };

// The level in use: the machine's best, or GMFAST_CPU_ISA (v2, v3, v4) where it is set.
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

#define GMFAST_JOIN_(a, b) a##_##b
#define GMFAST_JOIN(a, b) GMFAST_JOIN_(a, b)
#define GMFAST_DEFINE_CPU_KERNEL(name, Args) void GMFAST_JOIN(name, GMFAST_LEVEL)(const Args& args)
