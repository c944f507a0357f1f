// The tensors of csrc/noise.h.
#pragma once

#include <optional>

#include "../noise.h"
#include "rows.h"

namespace gmfast {

using Optional = std::optional<Tensor>;

// Noise is drawn for elements in the order of their dimensions, and so they are then walked.
inline Tensor in_order(const Tensor& x, bool drawn) {
  return drawn && channels_innermost(x) ? torch::stable::contiguous(x) : x;
}

// A result in the layout of x.
inline Tensor laid_out(const Tensor& result, const Tensor& x) {
  if (!channels_innermost(x) || result.dim() != x.dim() || channels_innermost(result)) {
    return result;
  }
  Tensor copy = empty_as(x, sizes_of(x), result.scalar_type());
  torch::stable::copy_(copy, result);
  return copy;
}

// An input in the shape of x, of any dtype. Returns what the operand points into.
inline Tensor add_whole(const char* name, RowWalk& walk, const Tensor& x, const Tensor& tensor,
                        RowOperand& operand) {
  STD_TORCH_CHECK(sizes_of(tensor) == sizes_of(x) && same_device(tensor, x), name,
                  ": expected the shape and device of x");
  return walk.add(tensor, operand);
}

// The noise, given or drawn. Returns what it points into.
inline Tensor add_noise(RowWalk& walk, const Tensor& x, const Optional& given, const Optional& seed,
                        Noise& noise) {
  if (given) return add_whole("noise", walk, x, *given, noise.given);
  STD_TORCH_CHECK(seed.has_value(), "expected noise or a seed");
  STD_TORCH_CHECK(seed->scalar_type() == ScalarType::Long && same_device(*seed, x) &&
                      (seed->dim() == 0 || (seed->dim() == 1 && seed->size(0) == x.size(0))),
                  "seed: expected int64, () or (B,), on the device of x");
  noise.seed = static_cast<const int64_t*>(seed->data_ptr());
  if (seed->dim() == 0) return *seed;
  // A stride that says that samples have their own.
  const Tensor seeds = seed->stride(0) ? *seed : torch::stable::contiguous(*seed);
  noise.seed = static_cast<const int64_t*>(seeds.data_ptr());
  noise.seed_stride = seeds.stride(0);
  return seeds;
}

// Numbers (B,) of any dtype, or a value.
inline PerSample per_sample(const char* name, const Optional& numbers, double value,
                            const Tensor& x) {
  PerSample result;
  result.value = value;
  if (!numbers) return result;
  STD_TORCH_CHECK(numbers->dim() == 1 && numbers->size(0) == x.size(0) && same_device(*numbers, x),
                  name, ": expected (B,) on the device of x");
  result.data = numbers->data_ptr();
  result.dtype = dtype_of(*numbers);
  result.stride = numbers->stride(0);
  return result;
}

}  // namespace gmfast
