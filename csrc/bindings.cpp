// gmfast._C: importing it loads the operators; it also says what was built and what is in use.
#include <pybind11/pybind11.h>

#include "cpu/dispatch.h"

namespace py = pybind11;

namespace {

const char* cpu_level_name() {
  switch (gmfast::cpu_level()) {
    case gmfast::CpuLevel::v2:
      return "v2";
    case gmfast::CpuLevel::v3:
      return "v3";
    case gmfast::CpuLevel::v4:
      return "v4";
    default:
      return "native";
  }
}

py::dict build_info() {
  py::dict info;
  info["compiler"] = GMFAST_COMPILER;
  info["torch"] = GMFAST_TORCH;
  info["cpu_levels"] = GMFAST_CPU_LEVELS;
  info["cuda"] = GMFAST_CUDA_VERSION;
  info["cuda_architectures"] = GMFAST_CUDA_ARCHITECTURES;
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "The compiled part of gmfast.";
  m.def("build_info", &build_info,
        "What the build found and decided, as strings; empty where it was left out.");
  m.def("cpu_level", &cpu_level_name,
        "The SIMD level in use: v2, v3 or v4 of x86-64, or native. GMFAST_CPU_ISA lowers it.");
}
