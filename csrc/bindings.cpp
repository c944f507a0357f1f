// gmfast._C: importing it loads the operators; it also says what was built and what is in use, and
// runs decode programs.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "args/decode.h"
#include "bindings/codes.h"
#include "common/kernel.h"
#include "common/team.h"

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

// A decode program bound to the memory of its weights and values, which Python keeps alive.
class DecodeProgram {
 public:
  using Rows = std::vector<std::vector<int64_t>>;

  DecodeProgram(const std::string& dtype, const std::string& weight_dtype, const Rows& values,
                const Rows& taps, const Rows& layers, const Rows& draws, const Rows& steps,
                int64_t columns, std::pair<int64_t, int64_t> features, int64_t num_features,
                double log_scale_min)
      : values_(structs_of<gmfast::DecodeValue>(values)),
        taps_(structs_of<gmfast::DecodeTap>(taps)),
        layers_(structs_of<gmfast::DecodeLayer>(layers)),
        draws_(structs_of<gmfast::DecodeDraw>(draws)),
        steps_(structs_of<gmfast::DecodeStep>(steps)) {
    program_ = {dtype_of(dtype), dtype_of(weight_dtype),
                values_.data(),  taps_.data(),
                layers_.data(),  draws_.data(),
                steps_.data(),   int64_t(steps_.size()),
                columns,         {features.first, features.second},
                num_features,    log_scale_min};
  }
  DecodeProgram(const DecodeProgram&) = delete;

  const gmfast::DecodeProgram& get() const { return program_; }

 private:
  std::vector<gmfast::DecodeValue> values_;
  std::vector<gmfast::DecodeTap> taps_;
  std::vector<gmfast::DecodeLayer> layers_;
  std::vector<gmfast::DecodeDraw> draws_;
  std::vector<gmfast::DecodeStep> steps_;
  gmfast::DecodeProgram program_;
};

// What the executors have in common: a program, which must outlive them, and how far it has come.
class Execution {
 public:
  explicit Execution(const DecodeProgram& program) : program_(program) {}

  // The position, and the step of the program.
  int64_t cursor[2] = {0, 0};

 protected:
  // Positions up to `end`, drawing into x.
  gmfast::DecodeRun drawing(int64_t batch, int64_t end, intptr_t x, int64_t x_channels,
                            int64_t x_positions, intptr_t keep, intptr_t samples, intptr_t features,
                            double temperature) {
    gmfast::DecodeRun run = from_cursor(batch, end);
    run.x = reinterpret_cast<void*>(x);
    run.x_channels = x_channels;
    run.x_positions = x_positions;
    run.keep = reinterpret_cast<const uint8_t*>(keep);
    run.samples = reinterpret_cast<const int64_t*>(samples);
    run.features = reinterpret_cast<const void*>(features);
    run.features_positions = x_positions;
    run.temperature = temperature;
    return run;
  }

  // On to the next draw, or to `end`, where `fed` (0: nothing) goes to the draw it is at.
  gmfast::DecodeRun stepping(int64_t batch, int64_t end, intptr_t fed, intptr_t features) {
    gmfast::DecodeRun run = from_cursor(batch, end);
    run.stop_at_draw = true;
    run.fed = reinterpret_cast<const void*>(fed);
    run.features = reinterpret_cast<const void*>(features);
    run.features_positions = 1;
    run.first_feature = cursor[0] + (cursor[1] > 0);  // of the position whose layers run
    return run;
  }

 private:
  gmfast::DecodeRun from_cursor(int64_t batch, int64_t end) {
    gmfast::DecodeRun run{};
    run.program = program_.get();
    run.batch = batch;
    run.position = cursor[0];
    run.step = cursor[1];
    run.end = end;
    run.cursor = cursor;
    return run;
  }

  const DecodeProgram& program_;
};

// Runs a program on the CPU, with threads of its own.
class Decoder : public Execution {
 public:
  Decoder(const DecodeProgram& program, int threads)
      : Execution(program), team_(std::make_unique<gmfast::Team>(threads)) {}

  // Between times of about 50 ms it calls progress(positions done) and lets signals raise.
  void sample(int64_t batch, int64_t end, intptr_t x, int64_t x_channels, int64_t x_positions,
              intptr_t keep, intptr_t samples, intptr_t features, int64_t seed, double temperature,
              const py::object& progress) {
    const Turn turn(busy_);
    for (int64_t chunk = 1; cursor[0] < end;) {
      const int64_t before = cursor[0];
      gmfast::DecodeRun run = drawing(batch, std::min(end, before + chunk), x, x_channels,
                                      x_positions, keep, samples, features, temperature);
      run.seed = seed;
      const auto start = std::chrono::steady_clock::now();
      go(run);
      const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
      if (seconds.count() < 0.025) chunk *= 2;
      if (seconds.count() > 0.1 && chunk > 1) chunk /= 2;
      if (PyErr_CheckSignals()) throw py::error_already_set();
      if (!progress.is_none()) progress(cursor[0] - before);
    }
  }

  void step(int64_t batch, int64_t end, intptr_t fed, intptr_t features) {
    const Turn turn(busy_);
    go(stepping(batch, end, fed, features));
  }

 private:
  // Of one call: another one, from a Python thread that the GIL lets in, would find the team at
  // work.
  class Turn {
   public:
    explicit Turn(bool& busy) : busy_(busy) {
      if (busy)
        throw std::runtime_error("program: expected one call at a time, got another within");
      busy = true;
    }
    ~Turn() { busy_ = false; }
    Turn(const Turn&) = delete;

   private:
    bool& busy_;
  };

  void go(gmfast::DecodeRun run) {
    run.team = team_.get();
    py::gil_scoped_release release;
    gmfast::decode_cpu(run);
  }

  std::unique_ptr<gmfast::Team> team_;
  bool busy_ = false;
};

#ifdef GMFAST_CUDA

// Puts the launches of a program on a CUDA stream, and returns at once. `strips`, the position and
// the seed are in the device's memory.
class CudaDecoder : public Execution {
 public:
  CudaDecoder(const DecodeProgram& program, intptr_t strips, intptr_t position)
      : Execution(program), strips_(strips), position_(position) {}

  void sample(int64_t batch, int64_t end, intptr_t x, int64_t x_channels, int64_t x_positions,
              intptr_t keep, intptr_t samples, intptr_t features, intptr_t seed, double temperature,
              intptr_t stream) {
    go(drawing(batch, end, x, x_channels, x_positions, keep, samples, features, temperature), seed,
       stream);
  }

  void step(int64_t batch, int64_t end, intptr_t fed, intptr_t features, intptr_t stream) {
    go(stepping(batch, end, fed, features), 0, stream);
  }

 private:
  void go(const gmfast::DecodeRun& run, intptr_t seed, intptr_t stream) {
    py::gil_scoped_release release;
    gmfast::decode_cuda(
        {run, reinterpret_cast<const gmfast::DecodeStrip*>(strips_),
         reinterpret_cast<int64_t*>(position_), reinterpret_cast<const int64_t*>(seed)},
        reinterpret_cast<void*>(stream));
  }

  const intptr_t strips_, position_;
};

#endif

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
  m.attr("decode_cuda_panel") = gmfast::decode_cuda_panel;

  bind_codes(m);

  using Rows = DecodeProgram::Rows;
  py::class_<DecodeProgram>(m, "DecodeProgram", "Of structs in csrc/decode.h, as tuples.")
      .def(py::init<const std::string&, const std::string&, const Rows&, const Rows&, const Rows&,
                    const Rows&, const Rows&, int64_t, std::pair<int64_t, int64_t>, int64_t,
                    double>());
  py::class_<Execution>(m, "Execution", "Of a decode program; see gmfast.decode.")
      .def_property(
          "cursor", [](const Execution& e) { return std::make_pair(e.cursor[0], e.cursor[1]); },
          [](Execution& e, std::pair<int64_t, int64_t> cursor) {
            e.cursor[0] = cursor.first;
            e.cursor[1] = cursor.second;
          });
  py::class_<Decoder, Execution>(m, "Decoder")
      .def(py::init<const DecodeProgram&, int>(), py::keep_alive<1, 2>())
      .def("sample", &Decoder::sample)
      .def("step", &Decoder::step);
#ifdef GMFAST_CUDA
  py::class_<CudaDecoder, Execution>(m, "CudaDecoder")
      .def(py::init<const DecodeProgram&, intptr_t, intptr_t>(), py::keep_alive<1, 2>())
      .def("sample", &CudaDecoder::sample)
      .def("step", &CudaDecoder::step);
#endif
}
