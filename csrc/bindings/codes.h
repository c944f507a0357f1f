// Names and codes of C++ that Python repeats, as part of the Python module gmfast._C.
#pragma once

#include <pybind11/pybind11.h>

void bind_codes(pybind11::module_& m);
