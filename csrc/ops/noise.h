// Tensors as the operands of noise (common/noise.h).
#pragma once

#include <optional>

#include "../common/noise.h"
#include "rows.h"

namespace gmfast {

using Optional = std::optional<Tensor>;

// Noise is drawn for elements in the order of their dimensions, and where that is not provided for
// they are walked so.
inline Tensor in_order(const Tensor& x, bool drawn) {
  return drawn && channels_innermost(x) ? torch::stable::contiguous(x) : x;
}

// Channels innermost, and the pixels one after another.
inline bool dense_channels_last(const Tensor& x) {
  Extent sample;
  return channels_innermost(x) && collapse(x, memory_order(x.dim(), true), 1, x.dim(), sample);
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

// The first sample of a batch in the noise.
inline int64_t first_sample(int64_t first) {
  STD_TORCH_CHECK(first >= 0 && first < int64_t(1) << 32, "first: expected 0 to 2**32 - 1");
  return first;
}

// Seeds for the samples of x, whose noise counts from sample `first`; what they point into is the
// tensor.
inline Seeds seeds_of(const Tensor& seed, const Tensor& x, int64_t batch, int64_t first) {
  STD_TORCH_CHECK(seed.scalar_type() == ScalarType::Long && same_device(seed, x) &&
                      (seed.numel() == 1 || (seed.dim() == 1 && seed.size(0) == batch)),
                  "seed: expected int64, () or (B,), on the device of x");
  Seeds seeds;
  seeds.first = first_sample(first);
  seeds.data = static_cast<const int64_t*>(seed.data_ptr());
  seeds.own = seed.dim() > 0 && seed.size(0) == batch;
  if (seeds.own) seeds.stride = seed.stride(0);
  return seeds;
}

// The noise, given or drawn. Returns what it points into.
inline Tensor add_noise(RowWalk& walk, const Tensor& x, const Optional& given, const Optional& seed,
                        int64_t first, Noise& noise) {
  if (given) return add_whole("noise", walk, x, *given, noise.given);
  STD_TORCH_CHECK(seed.has_value(), "expected noise or a seed");
  noise.seeds = seeds_of(*seed, x, x.size(0), first);
  return *seed;
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
