#include "kernel.h"

#include <cstdlib>
#include <cstring>

namespace gmfast {

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

}  // namespace gmfast
