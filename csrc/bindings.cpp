// gmfast._C: importing it loads the operators; it says what was built and what is in use, and runs
// decode programs.
#include <pybind11/native_enum.h>
#include <pybind11/pybind11.h>

#include "bindings/codes.h"
#include "bindings/decode.h"
#include "common/kernel.h"
#include "common/tensor.h"

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
  using gmfast::DType;
  m.doc() = "The compiled part of gmfast.";
  m.def("build_info", &build_info,
        "What the build found and decided, as strings; empty where it was left out.");
  m.def("cpu_level", &cpu_level_name,
        "The SIMD level in use: v2, v3 or v4 of x86-64, or native. GMFAST_CPU_ISA lowers it.");
  py::native_enum<DType>(m, "DType", "enum.Enum", "Element types of the kernels.")
      .value("float32", DType::float32)
      .value("float64", DType::float64)
      .value("bfloat16", DType::bfloat16)
      .value("float16", DType::float16)
      .finalize();
  bind_codes(m);
  bind_decode(m);
}
