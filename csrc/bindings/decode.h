// Decode programs and their executors, as part of the Python module gmfast._C.
#pragma once

#include <pybind11/pybind11.h>

void bind_decode(pybind11::module_& m);
