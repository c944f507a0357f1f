// torch.randn of the CPU, continued from a generator's state. CPU only.
#pragma once

#include <cstdint>

#include "../common/kernel.h"

namespace gmfast {

constexpr int twister_words = 624;

// The first fields of a CPU torch.Generator's get_state(): a Mersenne twister. left - 1 words from
// `next` on are unused.
struct GeneratorState {
  uint64_t seed;
  int32_t left;
  int32_t seeded;
  uint64_t next;
  uint64_t words[twister_words];  // 32 bits each
};

struct TorchNormal {
  GeneratorState* state;  // advanced by the call
  float* out;
  int64_t count;  // at least 16
};

GMFAST_CPU_KERNEL(torch_normal, TorchNormal);

}  // namespace gmfast
