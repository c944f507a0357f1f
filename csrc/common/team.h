// Threads with a cheap barrier: a decode program has a barrier after each layer, tens of thousands
// a second, where a parallel region would cost more than the layer.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace gmfast {

class __attribute__((visibility("default"))) Team {
 public:
  explicit Team(int size);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int size() const { return size_; }

  // Calls body(context, thread) on every thread of the team, the caller being thread 0, and returns
  // when all have. Throws std::runtime_error if the system has no threads left, after which it may
  // be called again.
  void run(void (*body)(void*, int), void* context);

  // Within run(): returns when all threads have called it.
  void barrier();

 private:
  void leave();
  void start();
  void stop();
  void work(int thread, uint32_t seen);

  const int size_;
  int64_t process_ = 0;  // that started the threads; a fork has none of them
  std::vector<std::thread> threads_;
  void (*body_)(void*, int) = nullptr;
  void* context_ = nullptr;
  bool stop_ = false;
  // Idle threads sleep here. A fork needs its own: its parent's may be locked, or waited at, by
  // threads that the fork does not have.
  struct Sleep {
    std::mutex mutex;
    std::condition_variable wake;
  };
  std::unique_ptr<Sleep> sleep_;
  alignas(64) std::atomic<uint32_t> generation_{0};  // of calls to run()
  alignas(64) std::atomic<uint32_t> epoch_{0};       // of barriers
  alignas(64) std::atomic<int> arrived_{0};
};

}  // namespace gmfast
