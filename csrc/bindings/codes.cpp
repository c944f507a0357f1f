#include "codes.h"

#include <pybind11/native_enum.h>

#include <string>

#include "../args/diffusion_step.h"
#include "../math/affine_coupling.h"
#include "../math/made_inverse.h"
#include "../math/q_sample.h"
#include "../ops/codes.h"

namespace py = pybind11;
using namespace gmfast;

namespace {

// The columns of a diffusion sampler's table of coefficients, in order.
py::tuple diffusion_columns() {
  py::tuple names(step_columns);
  const auto name = [&](int column, const std::string& text) { names[column] = text; };
  name(step_x0_x, "x0_x");
  name(step_x0_x + 1, "x0_m");
  for (const auto& [first, prefix] : {std::pair(step_result, ""), std::pair(step_kept, "kept_")}) {
    const auto term = [&, first = first, prefix = std::string(prefix)](int place, const char* of) {
      name(first + place, prefix + of);
    };
    term(term_x, "x");
    term(term_m, "m");
    term(term_x0, "x0");
    term(term_history, "h1");
    term(term_history + 1, "h2");
    term(term_history + 2, "h3");
    term(term_history + 3, "h4");
    term(term_noise, "noise");
  }
  name(step_log_var_min, "log_var_min");
  name(step_log_var_min + 1, "log_var_max");
  return names;
}

}  // namespace

void bind_codes(py::module_& m) {
  m.attr("diffusion_columns") = diffusion_columns();
  py::native_enum<ScaleMap>(m, "ScaleMap", "enum.IntEnum", "Scale maps of the affine coupling.")
      .value("none", ScaleMap::none)
      .value("exp", ScaleMap::exp)
      .value("sigmoid", ScaleMap::sigmoid)
      .value("tanh", ScaleMap::tanh)
      .value("atan", ScaleMap::atan)
      .value("softclip", ScaleMap::softclip)
      .finalize();
  py::native_enum<MadeActivation>(m, "MadeActivation", "enum.IntEnum",
                                  "Activations of a masked autoencoder's hidden units.")
      .value("relu", MadeActivation::relu)
      .value("tanh", MadeActivation::tanh)
      .value("elu", MadeActivation::elu)
      .value("silu", MadeActivation::silu)
      .finalize();
  py::native_enum<NoiseTarget>(m, "NoiseTarget", "enum.IntEnum", "Targets that q_sample computes.")
      .value("none", NoiseTarget::none)
      .value("epsilon", NoiseTarget::epsilon)
      .value("velocity", NoiseTarget::velocity)
      .value("flow", NoiseTarget::flow)
      .finalize();
  py::native_enum<Packing>(m, "Packing", "enum.IntEnum",
                           "How an affine coupling's shift and raw scale are passed.")
      .value("separate", Packing::separate)
      .value("chunk", Packing::chunk)
      .value("interleaved", Packing::interleaved)
      .finalize();
  py::native_enum<Reduction>(m, "Reduction", "enum.IntEnum",
                             "Reductions of the mixture's negative log-likelihood.")
      .value("none", Reduction::none)
      .value("batch", Reduction::batch)
      .value("sum", Reduction::sum)
      .value("mean", Reduction::mean)
      .value("bits_per_dim", Reduction::bits_per_dim)
      .finalize();
  py::native_enum<DiffusionOption>(m, "DiffusionOption", "enum.IntFlag",
                                   "Optional inputs and results of diffusion_step.")
      .value("unconditional", DiffusionOption::unconditional)
      .value("variance", DiffusionOption::variance)
      .value("noise", DiffusionOption::noise)
      .value("steps", DiffusionOption::steps)
      .value("seeds", DiffusionOption::seeds)
      .value("seed", DiffusionOption::seed)
      .value("x0", DiffusionOption::x0)
      .value("kept", DiffusionOption::kept)
      .finalize();
}
