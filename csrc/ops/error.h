// The check of a torch shim call's result, by the name that later versions of torch give it; 2.11
// has another.
#pragma once

#include <torch/csrc/stable/library.h>

#ifndef STABLE_TORCH_ERROR_CODE_CHECK
#define STABLE_TORCH_ERROR_CODE_CHECK TORCH_ERROR_CODE_CHECK
#endif
