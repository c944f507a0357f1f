// Integer codes of operator arguments that gmfast/ops writes by hand. gmfast._C exports them and
// tests/ops/test_codes.py compares; those of a formula's variants are in csrc/math.
#pragma once

namespace gmfast {

// An affine coupling's shift and raw scale: two tensors, or one with the shifts in its first half,
// or with shifts and scales alternating.
enum class Packing { separate, chunk, interleaved };

// Of the mixture's negative log-likelihood, (B, *S): sums over a sample's pixels (B,), and their
// sum, mean and mean in bits per dimension.
enum class Reduction { none, batch, sum, mean, bits_per_dim };

// Flags of diffusion_step's `present`: the tensors in `others`, in this order, before the history.
// The last three stand for no tensor: each argument of an operator costs a call time.
enum class DiffusionOption {
  unconditional = 1,
  variance = 2,
  noise = 4,
  steps = 8,
  seeds = 16,
  seed = 32,  // a number
  x0 = 64,    // results
  kept = 128,
};
constexpr bool operator&(long present, DiffusionOption flag) { return (present & long(flag)) != 0; }

}  // namespace gmfast
