// What csrc/cuda/launch.h needs of CUDA, in plain C++: a CUDA thread is a std::thread, blocks run
// one after another, so that `__shared__` is static, __syncthreads is a barrier, and a shuffle an
// exchange between two barriers. ThreadSanitizer then sees a missing barrier as a race,
// AddressSanitizer an index out of bounds, in shared memory too: a block's is allocated to the
// byte, full of NaN.
#pragma once

#include <algorithm>
#include <atomic>
#include <barrier>
#include <climits>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <new>
#include <stdexcept>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(...)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
inline thread_local dim3 threadIdx;
inline dim3 blockIdx, blockDim, gridDim;

namespace cuda_on_cpu {

constexpr int warp_size = 32;
constexpr int exchange_bytes = 128;  // that a thread may show to its warp at once

// The barriers and the shared memory of the block that runs.
class Block {
 public:
  Block(int threads, size_t shared_bytes)
      : shared(static_cast<unsigned char*>(::operator new(shared_bytes, std::align_val_t(16)))),
        all(threads),
        exchanged(size_t(threads) * exchange_bytes) {
    std::memset(shared, 0xff, shared_bytes);
    for (int first = 0; first < threads; first += warp_size) {
      warps.push_back(std::make_unique<std::barrier<>>(std::min(threads - first, warp_size)));
    }
  }
  ~Block() { ::operator delete(shared, std::align_val_t(16)); }

  // A thread that has returned from the kernel is not waited for any more.
  void leave() {
    all.arrive_and_drop();
    warp().arrive_and_drop();
  }

  std::barrier<>& warp() { return *warps[threadIdx.x / warp_size]; }

  unsigned char* const shared;
  std::barrier<> all;
  std::vector<unsigned char> exchanged;

 private:
  std::vector<std::unique_ptr<std::barrier<>>> warps;
};

inline std::unique_ptr<Block> block;

inline unsigned char* dynamic_shared() { return block->shared; }

// What each thread of a warp shows to the others, from a barrier to the next.
class Exchange {
 public:
  Exchange(const void* value, size_t bytes) {
    if (bytes > exchange_bytes) throw std::length_error("cuda_on_cpu: exchange_bytes is too small");
    std::memcpy(slot(threadIdx.x), value, bytes);
    block->warp().arrive_and_wait();
  }
  ~Exchange() { block->warp().arrive_and_wait(); }

  const void* from(int lane) const {
    return slot(threadIdx.x / warp_size * warp_size + unsigned(lane));
  }

 private:
  static unsigned char* slot(size_t thread) { return &block->exchanged[thread * exchange_bytes]; }
};

// Threads that are made once, because ThreadSanitizer takes long to make one.
class Threads {
 public:
  ~Threads() {
    start(nullptr);
    for (std::thread& thread : threads_) thread.join();
  }

  // Calls job(0), ..., job(count - 1), each in its own thread, and waits for all.
  void run(int count, const std::function<void(int)>& job) {
    for (int i = int(threads_.size()); i < count; ++i) {
      threads_.emplace_back([this, i, seen = generation_.load()] { work(i, seen); });
    }
    count_ = count;
    unfinished_ = int(threads_.size());
    start(&job);
    for (int left = unfinished_; left > 0; left = unfinished_) unfinished_.wait(left);
  }

 private:
  void start(const std::function<void(int)>* job) {
    job_ = job;
    ++generation_;
    generation_.notify_all();
  }

  void work(int index, int seen) {
    for (;;) {
      generation_.wait(seen++);
      if (!job_) return;
      if (index < count_) (*job_)(index);
      if (--unfinished_ == 0) unfinished_.notify_one();
    }
  }

  std::vector<std::thread> threads_;
  const std::function<void(int)>* job_ = nullptr;
  int count_ = 0;
  std::atomic<int> generation_ = 0, unfinished_ = 0;
};

inline Threads all_threads;

// Runs `kernel` in every thread of every block.
template <class Kernel>
void run(int64_t blocks, int threads, size_t shared_bytes, const Kernel& kernel) {
  if (blocks == 0) return;
  if (blocks > INT_MAX || threads < 1 || threads > 1024) {
    throw std::runtime_error("invalid configuration");
  }
  gridDim = {unsigned(blocks)};
  blockDim = {unsigned(threads)};
  blockIdx = {0};
  block = std::make_unique<Block>(threads, shared_bytes);
  std::barrier turn(threads, [&]() noexcept {
    ++blockIdx.x;
    block = std::make_unique<Block>(threads, shared_bytes);
  });
  all_threads.run(threads, [&](int index) {
    threadIdx = {unsigned(index)};
    for (int64_t b = 0; b < blocks; ++b) {
      kernel();
      block->leave();
      turn.arrive_and_wait();
    }
  });
  block.reset();
}

}  // namespace cuda_on_cpu

inline void __syncthreads() { cuda_on_cpu::block->all.arrive_and_wait(); }
inline void __syncwarp() { cuda_on_cpu::block->warp().arrive_and_wait(); }
// Blocks run one after another: what one wrote the next sees.
inline void __threadfence() {}

inline unsigned atomicAdd(unsigned* address, unsigned value) {
  return std::atomic_ref<unsigned>(*address).fetch_add(value);
}

template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  const cuda_on_cpu::Exchange exchange(&value, sizeof(T));
  const int lane = int(threadIdx.x) % cuda_on_cpu::warp_size;
  std::memcpy(&value, exchange.from(lane ^ mask), sizeof(T));
  return value;
}
