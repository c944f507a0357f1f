// What csrc/cuda/launch.h needs of CUDA, in plain C++: a CUDA thread is a fiber, blocks run one
// after another, so that `__shared__` is static, __syncthreads is a barrier, and a shuffle an
// exchange between two barriers. ThreadSanitizer then sees a missing barrier as a race,
// AddressSanitizer an index out of bounds, in shared memory too: a block's is allocated to the
// byte, full of NaN.
//
// Fibers, which take turns in a single thread of the system from barrier to barrier, because
// hundreds of threads would spend nearly all of the time on waking each other up. ThreadSanitizer
// is told of them and of what the barriers order; the turns themselves order nothing.
#pragma once

#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <atomic>
#include <climits>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <new>
#include <stdexcept>
#include <vector>

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1
#elif __has_feature(thread_sanitizer)
#define __SANITIZE_THREAD__ 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#elif defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(...)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_on_cpu {

constexpr int warp_size = 32;
constexpr int exchange_bytes = 128;  // that a thread may show to its warp at once

constexpr int most_threads = 1024;
constexpr size_t stack_bytes = 1 << 20, page_bytes = 1 << 12;

// The scheduler's own accesses, which all fibers make without a barrier.
#define CUDA_ON_CPU_UNSEEN __attribute__((no_sanitize("thread")))

// What happens before `release` happens before what follows an `acquire` of the same address.
inline void release([[maybe_unused]] void* address) {
#if defined(__SANITIZE_THREAD__)
  __tsan_release(address);
#endif
}
inline void acquire([[maybe_unused]] void* address) {
#if defined(__SANITIZE_THREAD__)
  __tsan_acquire(address);
#endif
}

struct Fiber {
  ucontext_t context;
  const void* stack;  // its lowest address,
  size_t bytes;       // and its size
  void* sanitizer;    // what identifies it, or its stack, to the sanitizer
  bool runs;          // has not returned from the kernel
};

// The threads of a block, and the program itself, which gives each its turn.
struct Scheduler {
  Fiber program, fibers[most_threads];
  Fiber* current;
  int made;
  bool progress;  // whether a thread passed a barrier or returned in this round
  const std::function<void()>* job;
  char started, finished;  // addresses to release and to acquire
};
inline Scheduler scheduler;

CUDA_ON_CPU_UNSEEN inline void switch_fiber(Fiber& from, Fiber& to) {
  scheduler.current = &to;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&from.sanitizer, to.stack, to.bytes);
#elif defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(to.sanitizer, __tsan_switch_to_fiber_no_sync);
#endif
  swapcontext(&from.context, &to.context);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(from.sanitizer, nullptr, nullptr);
#endif
}

// Ends a fiber's turn.
CUDA_ON_CPU_UNSEEN inline void yield() { switch_fiber(*scheduler.current, scheduler.program); }

CUDA_ON_CPU_UNSEEN inline void fiber_main() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &scheduler.program.stack, &scheduler.program.bytes);
#endif
  Fiber& self = *scheduler.current;
  // AddressSanitizer forgets what it knows of a stack that a context names and returns to.
  self.context.uc_stack.ss_size = 0;
  for (;;) {
    acquire(&scheduler.started);
    (*scheduler.job)();
    release(&scheduler.finished);
    self.runs = false;
    scheduler.progress = true;
    yield();
  }
}

CUDA_ON_CPU_UNSEEN inline void make_fiber(Fiber& fiber) {
  // Below the stack is a page that faults.
  void* memory = mmap(nullptr, stack_bytes + page_bytes, PROT_NONE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  char* stack = static_cast<char*>(memory) + page_bytes;
  if (mprotect(stack, stack_bytes, PROT_READ | PROT_WRITE)) throw std::bad_alloc();
  fiber.stack = stack;
  fiber.bytes = stack_bytes;
#if defined(__SANITIZE_THREAD__)
  fiber.sanitizer = __tsan_create_fiber(0);
#endif
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = stack;
  fiber.context.uc_stack.ss_size = stack_bytes;
  makecontext(&fiber.context, fiber_main, 0);
}

// Calls `job` in each of `count` fibers, with their numbers in threadIdx, until all have returned.
CUDA_ON_CPU_UNSEEN inline void run_fibers(int count, const std::function<void()>& job) {
  Scheduler& s = scheduler;
#if defined(__SANITIZE_THREAD__)
  s.program.sanitizer = __tsan_get_current_fiber();
#endif
  for (; s.made < count; ++s.made) make_fiber(s.fibers[s.made]);
  for (int i = 0; i < count; ++i) s.fibers[i].runs = true;
  s.job = &job;
  release(&s.started);
  for (int running = count; running > 0;) {
    s.progress = false;
    running = 0;
    for (int i = 0; i < count; ++i) {
      if (!s.fibers[i].runs) continue;
      threadIdx.x = unsigned(i);
      switch_fiber(s.program, s.fibers[i]);
      running += s.fibers[i].runs;
    }
    if (!s.progress) {
      std::fprintf(stderr, "cuda_on_cpu: %d threads wait for others that never come\n", running);
      std::abort();
    }
  }
  acquire(&s.finished);
}

class Barrier {
 public:
  explicit Barrier(int threads) : expected_(threads) {}

  CUDA_ON_CPU_UNSEEN void arrive_and_wait() {
    const unsigned phase = phase_;
    release(&passed_[phase & 1]);
    ++arrived_;
    complete();
    while (phase_ == phase) yield();
    acquire(&passed_[phase & 1]);  // not what others release on their way to the next phase
  }

  CUDA_ON_CPU_UNSEEN void arrive_and_drop() {
    release(&passed_[phase_ & 1]);
    --expected_;
    complete();
  }

 private:
  CUDA_ON_CPU_UNSEEN void complete() {
    if (arrived_ == 0 || arrived_ < expected_) return;
    arrived_ = 0;
    ++phase_;
    scheduler.progress = true;
  }

  int expected_, arrived_ = 0;
  unsigned phase_ = 0;
  char passed_[2] = {};
};

// The barriers and the shared memory of the block that runs.
class Block {
 public:
  Block(int threads, size_t shared_bytes)
      : shared(static_cast<unsigned char*>(::operator new(shared_bytes, std::align_val_t(16)))),
        all(threads),
        exchanged(size_t(threads) * exchange_bytes) {
    std::memset(shared, 0xff, shared_bytes);
    for (int first = 0; first < threads; first += warp_size) {
      warps.push_back(std::make_unique<Barrier>(std::min(threads - first, warp_size)));
    }
  }
  ~Block() { ::operator delete(shared, std::align_val_t(16)); }

  // A thread that has returned from the kernel is not waited for any more.
  void leave() {
    all.arrive_and_drop();
    warp().arrive_and_drop();
  }

  Barrier& warp() { return *warps[threadIdx.x / warp_size]; }

  unsigned char* const shared;
  Barrier all;
  std::vector<unsigned char> exchanged;

 private:
  std::vector<std::unique_ptr<Barrier>> warps;
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

// Runs `kernel` in every thread of every block.
template <class Kernel>
void run(int64_t blocks, int threads, size_t shared_bytes, const Kernel& kernel) {
  if (blocks == 0) return;
  if (blocks > INT_MAX || threads < 1 || threads > most_threads) {
    throw std::runtime_error("invalid configuration");
  }
  gridDim = {unsigned(blocks)};
  blockDim = {unsigned(threads)};
  const std::function<void()> job = [&] {
    kernel();
    block->leave();
  };
  for (int64_t b = 0; b < blocks; ++b) {
    blockIdx = {unsigned(b)};
    block = std::make_unique<Block>(threads, shared_bytes);
    run_fibers(threads, job);
  }
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
