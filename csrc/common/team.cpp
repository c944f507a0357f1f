#include "team.h"

#include <unistd.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <stdexcept>
#include <string>
#include <system_error>

namespace gmfast {
namespace {

// Spins, then yields the core: there may be fewer cores than threads.
class Patience {
 public:
  // False after so long a wait that sleeping is better.
  bool wait() {
    count_ += count_ < 1000;
    if (count_ < 300) {
#if defined(__x86_64__)
      _mm_pause();
#endif
    } else {
      std::this_thread::yield();
    }
    return count_ < 1000;
  }

 private:
  int count_ = 0;
};

}  // namespace

Team::Team(int size) : size_(size) {}

Team::~Team() { process_ == getpid() ? stop() : leave(); }

// Drops the threads and the lock of another process: after a fork there is nothing to join, and the
// lock may be held.
void Team::leave() {
  for (auto& thread : threads_) new std::thread(std::move(thread));
  threads_.clear();
  sleep_.release();
}

void Team::start() {
  leave();
  sleep_ = std::make_unique<Sleep>();
  process_ = getpid();
  arrived_.store(0);
  try {
    for (int i = 1; i < size_; ++i)
      threads_.emplace_back([this, i, seen = generation_.load()] { work(i, seen); });
  } catch (const std::system_error& error) {
    stop();  // barriers would wait for the missing threads for ever
    throw std::runtime_error("gmfast: cannot start " + std::to_string(size_ - 1) +
                             " threads: " + error.what());
  }
}

// Ends this process' threads; run() starts new ones.
void Team::stop() {
  {
    std::lock_guard<std::mutex> lock(sleep_->mutex);
    stop_ = true;
    generation_.fetch_add(1, std::memory_order_release);
  }
  sleep_->wake.notify_all();
  for (auto& thread : threads_) thread.join();
  threads_.clear();
  stop_ = false;
  process_ = 0;
}

void Team::run(void (*body)(void*, int), void* context) {
  if (size_ == 1) return body(context, 0);
  if (process_ != getpid()) start();
  {
    std::lock_guard<std::mutex> lock(sleep_->mutex);
    body_ = body;
    context_ = context;
    generation_.fetch_add(1, std::memory_order_release);
  }
  sleep_->wake.notify_all();
  body(context, 0);
  barrier();
}

void Team::work(int thread, uint32_t seen) {
  while (true) {
    Patience patience;
    while (generation_.load(std::memory_order_acquire) == seen && patience.wait()) {
    }
    if (generation_.load(std::memory_order_acquire) == seen) {
      std::unique_lock<std::mutex> lock(sleep_->mutex);
      sleep_->wake.wait(lock, [&] { return generation_.load(std::memory_order_relaxed) != seen; });
    }
    ++seen;
    if (stop_) return;
    body_(context_, thread);
    barrier();
  }
}

void Team::barrier() {
  if (size_ == 1) return;
  const uint32_t epoch = epoch_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
    arrived_.store(0, std::memory_order_relaxed);
    epoch_.store(epoch + 1, std::memory_order_release);
    return;
  }
  Patience patience;
  while (epoch_.load(std::memory_order_acquire) == epoch) patience.wait();
}

}  // namespace gmfast
