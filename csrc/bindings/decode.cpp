// Decode programs in Python: the structs of csrc/args/decode.h with named fields, their
// enumerations, and the executors.
#include "decode.h"

#include <pybind11/native_enum.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "../args/decode.h"
#include "../common/team.h"

namespace py = pybind11;

namespace {

using gmfast::DecodeActivation;
using gmfast::DecodeDraw;
using gmfast::DecodeHead;
using gmfast::DecodeLayer;
using gmfast::DecodeSlot;
using gmfast::DecodeStep;
using gmfast::DecodeStepKind;
using gmfast::DecodeStrip;
using gmfast::DecodeTap;
using gmfast::DecodeValue;
using gmfast::DType;

// ---------------------------------------------------------------------------------------------
// Structs with named fields
// ---------------------------------------------------------------------------------------------

template <class T>
struct PythonType {
  using type = T;
  static T from(T value) { return value; }
  static const T& to(const T& value) { return value; }
};
// An address is an int.
template <class T>
struct PythonType<T*> {
  using type = uintptr_t;
  static T* from(uintptr_t address) { return reinterpret_cast<T*>(address); }
  static uintptr_t to(T* pointer) { return reinterpret_cast<uintptr_t>(pointer); }
};

// The name of a type in Python, for messages.
template <class T>
std::string name_of() {
  if constexpr (std::is_same<T, bool>::value) return "bool";
  if constexpr (std::is_integral<T>::value) return "int";
  const std::string name = py::type_id<T>();
  return name.substr(name.rfind(':') + 1);
}

template <class T, class Member>
struct Field {
  const char* name;
  Member T::* member;

  // Sets the field from the keyword arguments of a constructor; nothing is converted.
  void set(T& made, const py::kwargs& given) const {
    using Type = typename PythonType<Member>::type;
    PyObject* value = PyDict_GetItemWithError(given.ptr(), key.ptr());
    if (!value) throw py::type_error(name_of<T>() + ": expected the field " + name + ", got none");
    py::detail::make_caster<Type> caster;
    // To Python a bool is an int.
    const bool flag = std::is_integral<Type>::value && PyBool_Check(value);
    if (flag != std::is_same<Type, bool>::value || !caster.load(value, false)) {
      throw py::type_error(name_of<T>() + "." + name + ": expected " + name_of<Type>() + ", got " +
                           Py_TYPE(value)->tp_name);
    }
    made.*member = PythonType<Member>::from(py::detail::cast_op<Type>(caster));
  }

  py::handle key = PyUnicode_InternFromString(name);
};
template <class T, class Member>
Field<T, Member> field(const char* name, Member T::* member) {
  return {name, member};
}

// Binds a struct: constructed from all of its fields, each by its name and with exactly its type,
// and read field by field.
template <class T, class... Members>
void bind_struct(py::module_& m, const char* name, const char* doc, Field<T, Members>... fields) {
  py::class_<T> bound(m, name, doc);
  bound.def(py::init([fields...](const py::kwargs& given) {
    T made{};
    (fields.set(made, given), ...);
    if (given.size() != sizeof...(fields)) {
      for (const auto& [key, value] : given) {
        if (((key.equal(fields.key)) || ...)) continue;
        throw py::type_error(name_of<T>() + ": expected no field " + std::string(py::str(key)));
      }
    }
    return made;
  }));
  (bound.def_property_readonly(
       fields.name,
       [fields](const T& self) { return PythonType<Members>::to(self.*fields.member); }),
   ...);
  bound.def_static(
      "array",
      [](const std::vector<T>& structs) {
        return py::bytes(reinterpret_cast<const char*>(structs.data()), structs.size() * sizeof(T));
      },
      py::arg("structs"), "The bytes of a C array of these structs.");
}

void bind_structs(py::module_& m) {
  py::native_enum<DecodeActivation>(m, "DecodeActivation", "enum.Enum", "A layer's activation.")
      .value("none", DecodeActivation::none)
      .value("relu", DecodeActivation::relu)
      .value("elu", DecodeActivation::elu)
      .value("silu", DecodeActivation::silu)
      .value("gate", DecodeActivation::gate)
      .value("glu", DecodeActivation::glu)
      .value("concat_elu", DecodeActivation::concat_elu)
      .finalize();
  py::native_enum<DecodeHead>(m, "DecodeHead", "enum.Enum", "The distribution of a draw.")
      .value("none", DecodeHead::none)
      .value("categorical", DecodeHead::categorical)
      .value("bernoulli", DecodeHead::bernoulli)
      .value("mixture", DecodeHead::mixture)
      .finalize();
  py::native_enum<DecodeStepKind>(m, "DecodeStepKind", "enum.Enum", "What a step executes.")
      .value("layers", DecodeStepKind::layers)
      .value("draw", DecodeStepKind::draw)
      .value("features", DecodeStepKind::features)
      .finalize();

  bind_struct(m, "DecodeValue", "A value's ring buffer.", field("data", &DecodeValue::data),
              field("scale", &DecodeValue::scale), field("rows", &DecodeValue::rows),
              field("row_stride", &DecodeValue::row_stride),
              field("column_stride", &DecodeValue::column_stride),
              field("sample_stride", &DecodeValue::sample_stride));
  bind_struct(m, "DecodeSlot", "Channels of a value; value -1: none.",
              field("value", &DecodeSlot::value), field("channel", &DecodeSlot::channel));
  bind_struct(m, "DecodeTap", "One offset of a layer's kernel.", field("value", &DecodeTap::value),
              field("row", &DecodeTap::row), field("column", &DecodeTap::column),
              field("channel", &DecodeTap::channel), field("channels", &DecodeTap::channels),
              field("depthwise", &DecodeTap::depthwise));
  bind_struct(m, "DecodeStrip", "A tap, or channels of one, for a warp of a GPU.",
              field("value", &DecodeStrip::value), field("row", &DecodeStrip::row),
              field("column", &DecodeStrip::column), field("channel", &DecodeStrip::channel),
              field("channels", &DecodeStrip::channels),
              field("depthwise", &DecodeStrip::depthwise), field("weight", &DecodeStrip::weight),
              field("panel_size", &DecodeStrip::panel_size));
  bind_struct(
      m, "DecodeLayer", "A layer: its taps, packed weights, positions and outputs.",
      field("first_tap", &DecodeLayer::first_tap), field("taps", &DecodeLayer::taps),
      field("weight", &DecodeLayer::weight), field("bias", &DecodeLayer::bias),
      field("context", &DecodeLayer::context), field("outputs", &DecodeLayer::outputs),
      field("whole_row", &DecodeLayer::whole_row), field("first_row", &DecodeLayer::first_row),
      field("row_step", &DecodeLayer::row_step), field("row_phase", &DecodeLayer::row_phase),
      field("column_step", &DecodeLayer::column_step),
      field("column_phase", &DecodeLayer::column_phase), field("add", &DecodeLayer::add),
      field("residual", &DecodeLayer::residual), field("activation", &DecodeLayer::activation),
      field("out", &DecodeLayer::out), field("activated", &DecodeLayer::activated),
      field("activated_by", &DecodeLayer::activated_by));
  bind_struct(m, "DecodeDraw", "Channels drawn from a distribution.",
              field("params", &DecodeDraw::params), field("value", &DecodeDraw::value),
              field("channels", &DecodeDraw::channels),
              field("first_channel", &DecodeDraw::first_channel), field("ones", &DecodeDraw::ones),
              field("position", &DecodeDraw::position), field("head", &DecodeDraw::head),
              field("levels", &DecodeDraw::levels), field("mixtures", &DecodeDraw::mixtures));
  bind_struct(m, "DecodeStep", "Independent layers, a draw, or the local features.",
              field("kind", &DecodeStep::kind), field("begin", &DecodeStep::begin),
              field("end", &DecodeStep::end));
}

// ---------------------------------------------------------------------------------------------
// Programs
// ---------------------------------------------------------------------------------------------

// The names of an element of a program's arrays, for messages: such as "layers[3]".
struct Element {
  const char* array;
  size_t index;

  [[noreturn]] void refuse(const char* field, const std::string& expected, int64_t came) const {
    throw std::invalid_argument(std::string(array) + "[" + std::to_string(index) + "]." + field +
                                ": expected " + expected + ", got " + std::to_string(came));
  }
  // Requires low <= came <= high.
  void range(const char* field, int64_t came, int64_t low, int64_t high) const {
    if (came >= low && came <= high) return;
    refuse(field, "a number in [" + std::to_string(low) + ", " + std::to_string(high) + "]", came);
  }
  void at_least(const char* field, int64_t came, int64_t low) const {
    if (came < low) refuse(field, "at least " + std::to_string(low), came);
  }
  void address(const char* field, const void* pointer) const {
    if (!pointer) refuse(field, "an address", 0);
  }
  // Requires a slot of one of `values` values, or none if it is optional.
  void slot(const char* field, const DecodeSlot& slot, int64_t values, bool optional = true) const {
    range((std::string(field) + ".value").c_str(), slot.value, optional ? -1 : 0, values - 1);
    at_least((std::string(field) + ".channel").c_str(), slot.channel, 0);
  }
};

// A decode program bound to the memory of its weights and values, which Python keeps alive. It
// refuses what would make an executor read or write elsewhere.
class DecodeProgram {
 public:
  // Taps on the CPU, strips on a GPU: there a layer's first_tap and taps count strips.
  using Taps = std::variant<std::vector<DecodeTap>, std::vector<DecodeStrip>>;

  DecodeProgram(DType dtype, DType weight_dtype, std::vector<DecodeValue> values, Taps taps,
                std::vector<DecodeLayer> layers, std::vector<DecodeDraw> draws,
                std::vector<DecodeStep> steps, int64_t columns, DecodeSlot features,
                int64_t num_features, double log_scale_min)
      : values_(std::move(values)),
        taps_(std::move(taps)),
        layers_(std::move(layers)),
        draws_(std::move(draws)),
        steps_(std::move(steps)) {
    program_.dtype = dtype;
    program_.weight_dtype = weight_dtype;
    program_.values = values_.data();
    if (const auto* own = std::get_if<std::vector<DecodeTap>>(&taps_)) program_.taps = own->data();
    program_.layers = layers_.data();
    program_.draws = draws_.data();
    program_.steps = steps_.data();
    program_.num_steps = int64_t(steps_.size());
    program_.columns = columns;
    program_.features = features;
    program_.num_features = num_features;
    program_.log_scale_min = log_scale_min;
    check();
  }
  DecodeProgram(const DecodeProgram&) = delete;

  const gmfast::DecodeProgram& get() const { return program_; }

  // Raises unless the program was made for the CPU, or else for a GPU.
  void require(bool cpu) const {
    // A program without taps is for both.
    const bool strips = std::holds_alternative<std::vector<DecodeStrip>>(taps_);
    if (num_taps() == 0 || strips != cpu) return;
    throw std::invalid_argument(cpu ? "program: expected taps for the CPU, got strips for a GPU"
                                    : "program: expected strips for a GPU, got taps for the CPU");
  }

 private:
  int64_t num_taps() const {
    return std::visit([](const auto& taps) { return int64_t(taps.size()); }, taps_);
  }

  void check() const {
    const DType dtype = program_.dtype, weights = program_.weight_dtype;
    if (dtype != DType::float32 && dtype != DType::float64) {
      throw std::invalid_argument("dtype: expected float32 or float64");
    }
    if (weights != dtype && !(weights == DType::bfloat16 && dtype == DType::float32)) {
      throw std::invalid_argument("weight_dtype: expected dtype, or bfloat16 for float32");
    }
    if (program_.columns < 1) {
      throw std::invalid_argument("columns: expected at least 1, got " +
                                  std::to_string(program_.columns));
    }
    for (size_t i = 0; i < values_.size(); ++i) check_ring({"values", i}, values_[i]);
    if (const auto* taps = std::get_if<std::vector<DecodeTap>>(&taps_)) {
      for (size_t i = 0; i < taps->size(); ++i) {
        const DecodeTap& tap = (*taps)[i];
        const Element element{"taps", i};
        element.range("value", tap.value, 0, num_values() - 1);
        check_offset(element, tap, values_[tap.value].rows);
      }
    } else {
      const auto& strips = std::get<std::vector<DecodeStrip>>(taps_);
      for (size_t i = 0; i < strips.size(); ++i) {
        const Element element{"strips", i};
        check_ring(element, strips[i].value);
        check_offset(element, strips[i], strips[i].value.rows);
        element.address("weight", strips[i].weight);
        if (!strips[i].depthwise) {
          element.range("channels", strips[i].channels, 1, gmfast::decode_cuda_panel);
        }
      }
    }
    for (size_t i = 0; i < layers_.size(); ++i) check_layer({"layers", i}, layers_[i]);
    for (size_t i = 0; i < draws_.size(); ++i) check_draw({"draws", i}, draws_[i]);
    for (size_t i = 0; i < steps_.size(); ++i) check_step({"steps", i}, steps_[i]);
  }

  int64_t num_values() const { return int64_t(values_.size()); }

  static void check_ring(const Element& element, const DecodeValue& value) {
    element.address("data", value.data);
    element.at_least("scale", value.scale, 1);
    element.at_least("rows", value.rows, 1);
  }

  template <class Tap>
  static void check_offset(const Element& element, const Tap& tap, int64_t rows) {
    element.range("row", tap.row, 1 - rows, 0);  // the ring holds no others
    element.at_least("channel", tap.channel, 0);
    element.at_least("channels", tap.channels, 0);
  }

  void check_layer(const Element& element, const DecodeLayer& layer) const {
    element.range("first_tap", layer.first_tap, 0, num_taps());
    element.range("taps", layer.taps, 0, num_taps() - layer.first_tap);
    if (layer.taps > 0) element.address("weight", layer.weight);
    element.address("bias", layer.bias);
    element.at_least("outputs", layer.outputs, 0);
    element.at_least("row_step", layer.row_step, 1);
    element.range("row_phase", layer.row_phase, 0, layer.row_step - 1);
    element.at_least("column_step", layer.column_step, 1);
    element.range("column_phase", layer.column_phase, 0, layer.column_step - 1);
    element.slot("add", layer.add, num_values());
    element.slot("residual", layer.residual, num_values());
    element.slot("out", layer.out, num_values());
    element.slot("activated", layer.activated, num_values());
    if (layer.activation == DecodeActivation::concat_elu) {
      element.refuse("activation", "one with as many outputs (concat_elu: activated_by)",
                     int64_t(layer.activation));
    }
    if (layer.activated_by == DecodeActivation::gate ||
        layer.activated_by == DecodeActivation::glu) {
      element.refuse("activated_by", "no gate", int64_t(layer.activated_by));
    }
  }

  void check_draw(const Element& element, const DecodeDraw& draw) const {
    element.slot("params", draw.params, num_values(), draw.head == DecodeHead::none);
    element.slot("value", draw.value, num_values(), false);
    element.at_least("channels", draw.channels, 1);
    element.at_least("first_channel", draw.first_channel, 0);
    element.at_least("position", draw.position, -1);
    if (draw.head != DecodeHead::none) element.at_least("levels", draw.levels, 2);
    if (draw.head == DecodeHead::mixture) element.at_least("mixtures", draw.mixtures, 1);
  }

  void check_step(const Element& element, const DecodeStep& step) const {
    switch (step.kind) {
      case DecodeStepKind::layers:
        element.range("end", step.end, 0, int64_t(layers_.size()));
        element.range("begin", step.begin, 0, step.end);
        break;
      case DecodeStepKind::draw:
        element.range("begin", step.begin, 0, int64_t(draws_.size()) - 1);
        break;
      case DecodeStepKind::features:
        if (program_.features.value < 0 || program_.features.value >= num_values() ||
            program_.features.channel < 0 || program_.num_features < 0) {
          element.refuse("kind", "a slot in the program's features", program_.features.value);
        }
        break;
    }
  }

  const std::vector<DecodeValue> values_;
  const Taps taps_;
  const std::vector<DecodeLayer> layers_;
  const std::vector<DecodeDraw> draws_;
  const std::vector<DecodeStep> steps_;
  gmfast::DecodeProgram program_{};
};

// ---------------------------------------------------------------------------------------------
// Executors
// ---------------------------------------------------------------------------------------------

// A program, which must outlive its executor, and its cursor: a position and a step of the program.
class Executor {
 public:
  Executor(const DecodeProgram& program, bool cpu) : program_(program) { program.require(cpu); }

  std::pair<int64_t, int64_t> cursor() const { return {cursor_[0], cursor_[1]}; }
  void set_cursor(std::pair<int64_t, int64_t> cursor) {
    const auto [position, step] = cursor;
    if (position < 0 || step < 0 || (step > 0 && step >= program_.get().num_steps)) {
      throw std::invalid_argument("cursor: expected a position from 0 and a step below " +
                                  std::to_string(program_.get().num_steps) + ", got (" +
                                  std::to_string(position) + ", " + std::to_string(step) + ")");
    }
    cursor_[0] = position;
    cursor_[1] = step;
  }

 protected:
  // To the position `end`, drawing into x.
  gmfast::DecodeRun drawing(int64_t batch, int64_t end, uintptr_t x, int64_t x_channels,
                            int64_t x_positions, uintptr_t keep, uintptr_t samples,
                            uintptr_t features, double temperature) {
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

  // To the next draw, or to `end`; `fed` (0: nothing) goes to the draw at the cursor.
  gmfast::DecodeRun stepping(int64_t batch, int64_t end, uintptr_t fed, uintptr_t features) {
    gmfast::DecodeRun run = from_cursor(batch, end);
    run.stop_at_draw = true;
    run.fed = reinterpret_cast<const void*>(fed);
    run.features = reinterpret_cast<const void*>(features);
    run.features_positions = 1;
    run.first_feature = cursor_[0] + (cursor_[1] > 0);  // the position whose layers run next
    return run;
  }

  int64_t cursor_[2] = {0, 0};

 private:
  gmfast::DecodeRun from_cursor(int64_t batch, int64_t end) {
    gmfast::DecodeRun run{};
    run.program = program_.get();
    run.batch = batch;
    run.position = cursor_[0];
    run.step = cursor_[1];
    run.end = end;
    run.cursor = cursor_;
    return run;
  }

  const DecodeProgram& program_;
};

// Runs a program on the CPU, with threads of its own.
class CpuExecutor : public Executor {
 public:
  CpuExecutor(const DecodeProgram& program, int threads)
      : Executor(program, true), team_(std::make_unique<gmfast::Team>(threads)) {}

  // About every 50 ms it calls progress(positions done since) and lets signal handlers raise.
  void sample(int64_t batch, int64_t end, uintptr_t x, int64_t x_channels, int64_t x_positions,
              uintptr_t keep, uintptr_t samples, uintptr_t features, int64_t seed,
              double temperature, const py::object& progress) {
    const Turn turn(busy_);
    for (int64_t chunk = 1; cursor_[0] < end;) {
      const int64_t before = cursor_[0];
      gmfast::DecodeRun run = drawing(batch, std::min(end, before + chunk), x, x_channels,
                                      x_positions, keep, samples, features, temperature);
      run.seed = seed;
      const auto start = std::chrono::steady_clock::now();
      go(run);
      const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
      if (seconds.count() < 0.025) chunk *= 2;
      if (seconds.count() > 0.1 && chunk > 1) chunk /= 2;
      if (PyErr_CheckSignals()) throw py::error_already_set();
      if (!progress.is_none()) progress(cursor_[0] - before);
    }
  }

  void step(int64_t batch, int64_t end, uintptr_t fed, uintptr_t features) {
    const Turn turn(busy_);
    go(stepping(batch, end, fed, features));
  }

 private:
  // Held during a call. Another one, from a Python thread that the GIL lets in, would find the team
  // at work.
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

// Enqueues the launches of a program on a CUDA stream and returns at once. `strips`, the position
// and the seed are in the device's memory.
class CudaExecutor : public Executor {
 public:
  CudaExecutor(const DecodeProgram& program, uintptr_t strips, uintptr_t position)
      : Executor(program, false), strips_(strips), position_(position) {}

  void sample(int64_t batch, int64_t end, uintptr_t x, int64_t x_channels, int64_t x_positions,
              uintptr_t keep, uintptr_t samples, uintptr_t features, uintptr_t seed,
              double temperature, uintptr_t stream) {
    go(drawing(batch, end, x, x_channels, x_positions, keep, samples, features, temperature), seed,
       stream);
  }

  void step(int64_t batch, int64_t end, uintptr_t fed, uintptr_t features, uintptr_t stream) {
    go(stepping(batch, end, fed, features), 0, stream);
  }

 private:
  void go(const gmfast::DecodeRun& run, uintptr_t seed, uintptr_t stream) {
    py::gil_scoped_release release;
    gmfast::decode_cuda(
        {run, reinterpret_cast<const DecodeStrip*>(strips_), reinterpret_cast<int64_t*>(position_),
         reinterpret_cast<const int64_t*>(seed)},
        reinterpret_cast<void*>(stream));
  }

  const uintptr_t strips_, position_;
};

#endif

}  // namespace

void bind_decode(py::module_& m) {
  using py::arg, py::kw_only;
  bind_structs(m);
  m.def("decode_panel", &gmfast::decode_panel, arg("element_size"),
        "Sums in a panel of a decode program's weights on the CPU, for a dtype of this size in "
        "bytes.");
  m.attr("decode_cuda_panel") = gmfast::decode_cuda_panel;

  py::class_<DecodeProgram>(m, "DecodeProgram",
                            "The structs of csrc/args/decode.h, checked against one another.")
      .def(py::init<DType, DType, std::vector<DecodeValue>, DecodeProgram::Taps,
                    std::vector<DecodeLayer>, std::vector<DecodeDraw>, std::vector<DecodeStep>,
                    int64_t, DecodeSlot, int64_t, double>(),
           kw_only(), arg("dtype"), arg("weight_dtype"), arg("values"), arg("taps"), arg("layers"),
           arg("draws"), arg("steps"), arg("columns"), arg("features"), arg("num_features"),
           arg("log_scale_min"));
  py::class_<Executor>(m, "Executor", "Runs a decode program; see gmfast.decode.")
      .def_property("cursor", &Executor::cursor, &Executor::set_cursor);
  py::class_<CpuExecutor, Executor>(m, "CpuExecutor")
      .def(py::init<const DecodeProgram&, int>(), kw_only(), arg("program"), arg("threads"),
           py::keep_alive<1, 2>())
      .def("sample", &CpuExecutor::sample, kw_only(), arg("batch"), arg("end"), arg("x"),
           arg("x_channels"), arg("x_positions"), arg("keep"), arg("samples"), arg("features"),
           arg("seed"), arg("temperature"), arg("progress"))
      .def("step", &CpuExecutor::step, kw_only(), arg("batch"), arg("end"), arg("fed"),
           arg("features"));
#ifdef GMFAST_CUDA
  py::class_<CudaExecutor, Executor>(m, "CudaExecutor")
      .def(py::init<const DecodeProgram&, uintptr_t, uintptr_t>(), kw_only(), arg("program"),
           arg("strips"), arg("position"), py::keep_alive<1, 2>())
      .def("sample", &CudaExecutor::sample, kw_only(), arg("batch"), arg("end"), arg("x"),
           arg("x_channels"), arg("x_positions"), arg("keep"), arg("samples"), arg("features"),
           arg("seed"), arg("temperature"), arg("stream"))
      .def("step", &CudaExecutor::step, kw_only(), arg("batch"), arg("end"), arg("fed"),
           arg("features"), arg("stream"));
#endif
}
