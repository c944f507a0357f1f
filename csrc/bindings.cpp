// gmfast._C: importing it loads the operators; it also says what was built and what is in use, and
// runs decode programs.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <chrono>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/team.h"
#include "decode.h"

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

gmfast::DType dtype_of(const std::string& name) {
  if (name == "float32") return gmfast::DType::float32;
  if (name == "float64") return gmfast::DType::float64;
  if (name == "bfloat16") return gmfast::DType::bfloat16;
  throw std::invalid_argument("dtype: expected float32, float64 or bfloat16, got " + name);
}

// Structs from tuples of their fields, each an integer.
template <class T>
std::vector<T> structs_of(const std::vector<std::vector<int64_t>>& rows) {
  static_assert(sizeof(T) % 8 == 0, "fields of 8 bytes");
  std::vector<T> structs(rows.size());
  for (size_t i = 0; i < rows.size(); ++i) {
    if (rows[i].size() * 8 != sizeof(T)) throw std::invalid_argument("a tuple of another length");
    std::memcpy(&structs[i], rows[i].data(), sizeof(T));
  }
  return structs;
}

// A decode program bound to the memory of its weights and values, which Python keeps alive, and the
// threads that run it.
class Decoder {
 public:
  using Rows = std::vector<std::vector<int64_t>>;

  Decoder(const std::string& dtype, const std::string& weight_dtype, const Rows& values,
          const Rows& taps, const Rows& layers, const Rows& draws, const Rows& steps,
          int64_t columns, std::pair<int64_t, int64_t> features, int64_t num_features,
          double log_scale_min, int threads)
      : values_(structs_of<gmfast::DecodeValue>(values)),
        taps_(structs_of<gmfast::DecodeTap>(taps)),
        layers_(structs_of<gmfast::DecodeLayer>(layers)),
        draws_(structs_of<gmfast::DecodeDraw>(draws)),
        steps_(structs_of<gmfast::DecodeStep>(steps)),
        team_(std::make_unique<gmfast::Team>(threads)) {
    program_ = {dtype_of(dtype), dtype_of(weight_dtype),
                values_.data(),  taps_.data(),
                layers_.data(),  draws_.data(),
                steps_.data(),   int64_t(steps_.size()),
                columns,         {features.first, features.second},
                num_features,    log_scale_min};
  }

  // Positions up to `end`, drawing. Between times of about 50 ms it calls progress(positions done)
  // and lets signals raise.
  void sample(int64_t batch, int64_t end, intptr_t x, int64_t x_channels, int64_t x_positions,
              intptr_t keep, intptr_t samples, intptr_t features, int64_t seed, double temperature,
              const py::object& progress) {
    gmfast::DecodeRun run = base(batch);
    run.x = reinterpret_cast<void*>(x);
    run.x_channels = x_channels;
    run.x_positions = x_positions;
    run.keep = reinterpret_cast<const uint8_t*>(keep);
    run.samples = reinterpret_cast<const int64_t*>(samples);
    run.features = reinterpret_cast<const void*>(features);
    run.features_positions = x_positions;
    run.seed = seed;
    run.temperature = temperature;
    for (int64_t chunk = 1; cursor[0] < end;) {
      const int64_t before = cursor[0];
      run.end = std::min(end, before + chunk);
      const auto start = std::chrono::steady_clock::now();
      go(run);
      const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
      if (seconds.count() < 0.025) chunk *= 2;
      if (seconds.count() > 0.1 && chunk > 1) chunk /= 2;
      if (PyErr_CheckSignals()) throw py::error_already_set();
      if (!progress.is_none()) progress(cursor[0] - before);
    }
  }

  // On to the next draw, or to `end`, where `fed` (0: nothing) goes to the draw it is at.
  void step(int64_t batch, int64_t end, intptr_t fed, intptr_t features) {
    gmfast::DecodeRun run = base(batch);
    run.end = end;
    run.stop_at_draw = true;
    run.fed = reinterpret_cast<const void*>(fed);
    run.features = reinterpret_cast<const void*>(features);
    run.features_positions = 1;
    run.first_feature = cursor[0] + (cursor[1] > 0);  // of the position whose layers run
    go(run);
  }

  // Where it is: the position, and the step of the program.
  int64_t cursor[2] = {0, 0};

 private:
  gmfast::DecodeRun base(int64_t batch) {
    gmfast::DecodeRun run{};
    run.program = program_;
    run.batch = batch;
    run.team = team_.get();
    run.position = cursor[0];
    run.step = cursor[1];
    run.cursor = cursor;
    return run;
  }

  void go(gmfast::DecodeRun& run) {
    run.position = cursor[0];
    run.step = cursor[1];
    py::gil_scoped_release release;
    gmfast::decode_cpu(run);
  }

  std::vector<gmfast::DecodeValue> values_;
  std::vector<gmfast::DecodeTap> taps_;
  std::vector<gmfast::DecodeLayer> layers_;
  std::vector<gmfast::DecodeDraw> draws_;
  std::vector<gmfast::DecodeStep> steps_;
  std::unique_ptr<gmfast::Team> team_;
  gmfast::DecodeProgram program_;
};

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "The compiled part of gmfast.";
  m.def("build_info", &build_info,
        "What the build found and decided, as strings; empty where it was left out.");
  m.def("cpu_level", &cpu_level_name,
        "The SIMD level in use: v2, v3 or v4 of x86-64, or native. GMFAST_CPU_ISA lowers it.");
  m.def("decode_panel", &gmfast::decode_panel,
        "Outputs in a panel of a decode program's weights, for the bytes of a number that is "
        "computed with.");
  py::class_<Decoder>(m, "Decoder", "Runs a decode program on the CPU; see gmfast.decode.")
      .def(py::init<const std::string&, const std::string&, const Decoder::Rows&,
                    const Decoder::Rows&, const Decoder::Rows&, const Decoder::Rows&,
                    const Decoder::Rows&, int64_t, std::pair<int64_t, int64_t>, int64_t, double,
                    int>())
      .def("sample", &Decoder::sample)
      .def("step", &Decoder::step)
      .def_property(
          "cursor", [](const Decoder& d) { return std::make_pair(d.cursor[0], d.cursor[1]); },
          [](Decoder& d, std::pair<int64_t, int64_t> cursor) {
            d.cursor[0] = cursor.first;
            d.cursor[1] = cursor.second;
          });
}
