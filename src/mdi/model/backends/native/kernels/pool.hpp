// Threads that share the tasks of one step after another.
//
// A phase of a step is a number of equal tasks. It ends when its tasks are done, not when all threads have come: where
// another program holds a core, the thread that waits for it is simply not there, and the others do its share.
// Between phases threads spin for some microseconds, then they sleep.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace mdi {

class Pool {
 public:
  explicit Pool(int n_threads) {
    for (int i = 1; i < n_threads; i++) threads_.emplace_back([this, i] { work(i); });
  }
  ~Pool() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      closed_ = true;
    }
    wake_.notify_all();
    for (std::thread &thread : threads_) thread.join();
  }
  int n_threads() const { return static_cast<int>(threads_.size()) + 1; }

  // Calls `task(index, thread)` for all `index < n_tasks`, on this thread and the others. Called by one thread only.
  template <class Task> void run(int n_tasks, const Task &task) {
    if (threads_.empty() || n_tasks <= 1) {
      for (int i = 0; i < n_tasks; i++) task(i, 0);
      return;
    }
    const std::function<void(int, int)> function = std::ref(task);
    begin(n_tasks, &function);
    help(0);
    for (int spins = 0; n_done_.load(std::memory_order_acquire) < n_tasks; spins++) {
      if (spins < kSpins) pause();
      else std::this_thread::yield();  // whoever has the last task may need this core
    }
  }

 private:
  static constexpr int kSpins = 2000;  // some 20 to 50 microseconds
  // One word says which phase it is and which of its tasks is next, so that nobody takes a task of a phase that has ended.
  static constexpr uint64_t kTaskBits = 24, kTaskMask = (uint64_t{1} << kTaskBits) - 1;

  void begin(int n_tasks, const std::function<void(int, int)> *task) {
    const uint64_t phase = (next_.load(std::memory_order_relaxed) >> kTaskBits) + 1;
    next_.store(phase << kTaskBits | kTaskMask, std::memory_order_seq_cst);  // nothing to take while the task changes
    task_.store(task, std::memory_order_relaxed);
    n_tasks_.store(n_tasks, std::memory_order_relaxed);
    n_done_.store(0, std::memory_order_relaxed);
    next_.store((phase + 1) << kTaskBits, std::memory_order_seq_cst);
    if (n_asleep_.load(std::memory_order_seq_cst) > 0) {
      std::lock_guard<std::mutex> lock(mutex_);
      wake_.notify_all();
    }
  }

  // Takes tasks of this phase until there are none. Returns the word at which there were none.
  uint64_t help(int thread) {
    uint64_t word = next_.load(std::memory_order_acquire);
    for (;;) {
      const int index = static_cast<int>(word & kTaskMask);
      const int n_tasks = n_tasks_.load(std::memory_order_relaxed);
      const std::function<void(int, int)> *task = task_.load(std::memory_order_relaxed);
      if (index >= n_tasks) return word;
      if (!next_.compare_exchange_weak(word, word + 1, std::memory_order_acq_rel, std::memory_order_acquire)) continue;
      // The phase cannot end before this task is done, so what was read belongs to it.
      (*task)(index, thread);
      n_done_.fetch_add(1, std::memory_order_release);
      word = next_.load(std::memory_order_acquire);
    }
  }

  void work(int thread) {
    for (;;) {
      const uint64_t seen = help(thread);
      int spins = 0;
      while (is_idle(seen) && spins++ < kSpins) pause();
      if (!is_idle(seen)) continue;
      std::unique_lock<std::mutex> lock(mutex_);
      n_asleep_.fetch_add(1, std::memory_order_seq_cst);
      wake_.wait(lock, [&] { return closed_ || !is_idle(seen); });
      n_asleep_.fetch_sub(1, std::memory_order_relaxed);
      if (closed_) return;
    }
  }
  // Whether the phase is still that of `seen`, at which there were no tasks.
  bool is_idle(uint64_t seen) const {
    return next_.load(std::memory_order_seq_cst) >> kTaskBits == seen >> kTaskBits;
  }
  static void pause() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  std::atomic<uint64_t> next_{0};
  std::atomic<const std::function<void(int, int)> *> task_{nullptr};
  std::atomic<int> n_tasks_{0}, n_done_{0}, n_asleep_{0};
  std::mutex mutex_;
  std::condition_variable wake_;
  bool closed_ = false;
  std::vector<std::thread> threads_;  // last: they use all of the above
};

}  // namespace mdi
