// All that the kernels use of CUDA. A .cu file that keeps to these primitives is also plain C++
// with tests/cuda_on_cpu/cuda_on_cpu.h, where sanitizers watch its threads.
#pragma once

#include <climits>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

#include "../math/simd.h"

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#include <cxxabi.h>

#include <cstdlib>
#include <memory>
#define GMFAST_DEVICE __device__ __forceinline__
#define GMFAST_UNROLL_BY(count) _Pragma(GMFAST_TEXT(unroll count))
#define GMFAST_TEXT(text) #text
#else
#include <cuda_on_cpu.h>
#define GMFAST_DEVICE inline
#define GMFAST_UNROLL_BY(count)
#endif

namespace gmfast {

// ---------------------------------------------------------------------------------------------
// Launching
// ---------------------------------------------------------------------------------------------

// Arguments convert to the kernel's parameter types, which alone are deduced.
template <class T>
struct Parameter {
  using type = T;
};

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

#if defined(__CUDACC__)

inline std::string kernel_name(const void* kernel) {
#if CUDART_VERSION >= 12030
  const char* mangled = nullptr;
  if (cudaFuncGetName(&mangled, kernel) == cudaSuccess && mangled) {
    int status = 0;
    std::unique_ptr<char, void (*)(void*)> name(
        abi::__cxa_demangle(mangled, nullptr, nullptr, &status), std::free);
    return status == 0 ? name.get() : mangled;
  }
#endif
  return "a kernel";
}

inline void check_launch(cudaError_t error, const void* kernel) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // so that nobody else reports it once more
  throw std::runtime_error("gmfast: cannot launch " + kernel_name(kernel) + ": " +
                           cudaGetErrorString(error));
}

// Puts `blocks` blocks of `threads` threads on the stream and returns at once; without blocks there
// is nothing to do. Throws std::runtime_error where the launch is refused.
template <class... P>
void launch(void (*kernel)(P...), int64_t blocks, int threads, size_t shared_bytes, void* stream,
            typename Parameter<P>::type... args) {
  const void* address = reinterpret_cast<const void*>(kernel);
  if (blocks == 0) return;
  check_launch(blocks <= INT_MAX ? cudaSuccess : cudaErrorInvalidConfiguration, address);
  if (shared_bytes > 48 * 1024) {
    check_launch(cudaFuncSetAttribute(address, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      int(shared_bytes)),
                 address);
  }
  void* pointers[] = {&args...};
  check_launch(cudaLaunchKernel(address, dim3(unsigned(blocks)), dim3(unsigned(threads)), pointers,
                                shared_bytes, static_cast<cudaStream_t>(stream)),
               address);
}

// Bytes of the device's memory become 0, on the stream.
inline void fill_zero(void* data, size_t bytes, void* stream) {
  const cudaError_t error = cudaMemsetAsync(data, 0, bytes, static_cast<cudaStream_t>(stream));
  if (error == cudaSuccess) return;
  cudaGetLastError();
  throw std::runtime_error(std::string("gmfast: cannot clear memory: ") +
                           cudaGetErrorString(error));
}

#else

template <class... P>
void launch(void (*kernel)(P...), int64_t blocks, int threads, size_t shared_bytes, void*,
            typename Parameter<P>::type... args) {
  cuda_on_cpu::run(blocks, threads, shared_bytes, [=] { kernel(args...); });
}

inline void fill_zero(void* data, size_t bytes, void*) { std::memset(data, 0, bytes); }

#endif

// ---------------------------------------------------------------------------------------------
// Inside a kernel
// ---------------------------------------------------------------------------------------------

GMFAST_DEVICE int thread_index() { return int(threadIdx.x); }
GMFAST_DEVICE int block_threads() { return int(blockDim.x); }
GMFAST_DEVICE int64_t block_index() { return int64_t(blockIdx.x); }

constexpr int warp_size = 32;

// The block's shared memory of launch()'s `shared_bytes`, aligned to 16 bytes.
template <class T>
GMFAST_DEVICE T* dynamic_shared() {
#if defined(__CUDACC__)
  extern __shared__ __align__(16) unsigned char memory[];
#else
  unsigned char* memory = cuda_on_cpu::dynamic_shared();
#endif
  return reinterpret_cast<T*>(memory);
}

// The sum over a warp, in every lane of it; all 32 must call. Always the same tree.
GMFAST_DEVICE double warp_sum(double value) {
  GMFAST_UNROLL
  for (int distance = warp_size / 2; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, distance);
  }
  return value;
}

// The sum over a block of `threads` threads, a multiple of 32, in every thread of it; all must
// call. Warps are added in their order.
template <int threads>
GMFAST_DEVICE double block_sum(double value) {
  __shared__ double partial[threads / warp_size];
  value = warp_sum(value);
  __syncthreads();  // whoever still reads an earlier sum
  if (thread_index() % warp_size == 0) partial[thread_index() / warp_size] = value;
  __syncthreads();
  double total = 0;
  GMFAST_UNROLL
  for (int warp = 0; warp < threads / warp_size; ++warp) total += partial[warp];
  return total;
}

// ---------------------------------------------------------------------------------------------
// Memory
// ---------------------------------------------------------------------------------------------

// N consecutive elements that move as one instruction, from and to addresses aligned to their size.
template <class T, int N>
struct alignas(N * sizeof(T)) Pack {
  T elements[N];

  template <class S>
  GMFAST_DEVICE S get(int i) const {
    return load<S>(&elements[i]);
  }
  template <class S>
  GMFAST_DEVICE void set(int i, S value) {
    store(&elements[i], value);
  }
};

// One element by one instruction: load() and store() are for any address, in memory they move
// bytes.
template <class S, class T>
GMFAST_DEVICE S load_element(const T* p) {
  const T element = *p;
  return load<S>(&element);
}
template <class T, class S>
GMFAST_DEVICE void store_element(T* p, S value) {
  T element;
  store(&element, value);
  *p = element;
}

// The most that one instruction moves.
template <class T>
constexpr int pack_elements = 16 / int(sizeof(T));

#if defined(__CUDACC__)
template <int bytes>
using Word = std::conditional_t<
    bytes == 16, uint4,
    std::conditional_t<bytes == 8, uint2, std::conditional_t<bytes == 4, uint32_t, uint16_t>>>;
#endif

template <int N, class T>
GMFAST_DEVICE Pack<T, N> load_pack(const T* p) {
#if defined(__CUDACC__)
  return bit_cast<Pack<T, N>>(*reinterpret_cast<const Word<int(N * sizeof(T))>*>(p));
#else
  return *reinterpret_cast<const Pack<T, N>*>(p);
#endif
}
template <int N, class T>
GMFAST_DEVICE void store_pack(T* p, const Pack<T, N>& pack) {
#if defined(__CUDACC__)
  // By name: the compiler splits an assignment into elements.
  __stwb(reinterpret_cast<Word<int(N * sizeof(T))>*>(p), bit_cast<Word<int(N * sizeof(T))>>(pack));
#else
  *reinterpret_cast<Pack<T, N>*>(p) = pack;
#endif
}

}  // namespace gmfast
