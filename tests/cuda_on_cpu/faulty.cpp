// Two kernels with a fault each, to see that it is found: argument 1 is `barrier` or `index`.
#include <cstdio>
#include <cstring>
#include <vector>

#include "../../csrc/cuda/launch.h"

namespace gmfast {
namespace {

__global__ void reverse_without_barrier(float* values) {
  __shared__ float copy[64];
  copy[thread_index()] = values[thread_index()];
  values[thread_index()] = copy[63 - thread_index()];
}

__global__ void write_beyond(float*) {
  float* shared = dynamic_shared<float>();
  shared[thread_index() + 1] = 0;
}

}  // namespace
}  // namespace gmfast

int main(int, char** arguments) {
  std::vector<float> values(64);
  const bool barrier = std::strcmp(arguments[1], "barrier") == 0;
  gmfast::launch(barrier ? gmfast::reverse_without_barrier : gmfast::write_beyond, 1, 64,
                 64 * sizeof(float), nullptr, values.data());
  std::printf("%g\n", values[0]);
}
