#pragma once

#include <cstdint>

#include "../common/kernel.h"

namespace gmfast {

constexpr int twister_words = 624;

// What torch.Generator.get_state() of the CPU begins with. left - 1 words from `next` on are
// unused.
struct GeneratorState {
  uint64_t seed;
  int32_t left;
  int32_t seeded;
  uint64_t next;
  uint64_t words[twister_words];  // of 32 bits
};

struct TorchNormal {
  GeneratorState* state;  // moves on
  float* out;
  int64_t count;  // 16 at least
};

GMFAST_CPU_KERNEL(torch_normal, TorchNormal);

}  // namespace gmfast
