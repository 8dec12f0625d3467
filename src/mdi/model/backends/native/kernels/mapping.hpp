// Files that are mapped to be read, and what becomes of one that cannot be read any more.
//
// Where a mapped file is cut short, or its disk fails, reading it raises SIGBUS, which ends a process without a word. The
// handler here puts zeros in the place of such a mapping and notes that it is lost, so that whoever computes with it can
// say so, and load it again. (X servers treat the memory that they share with clients in this way.)
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <mutex>

namespace mdi {

// What is mapped. An entry whose `base` is null is free.
struct Mapping {
  std::atomic<char *> base;
  size_t n_bytes, offset;  // of `base` and all pages behind it; of the first byte that was asked for
  std::atomic<bool> lost;

  const void *data() const { return base.load() + offset; }
  bool holds(const char *address) const {
    const char *first = base.load(std::memory_order_acquire);
    return first && address >= first && address < first + n_bytes;
  }
};

class Mappings {
 public:
  // Maps bytes of an open file. Returns null where the system does not, or where there are too many of them.
  static Mapping *map(int file, int64_t start, int64_t n_bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    Mapping *entry = free_entry();
    if (!entry || !watch()) return nullptr;
    const size_t offset = static_cast<size_t>(start % sysconf(_SC_PAGESIZE)), all = offset + static_cast<size_t>(n_bytes);
    void *base = mmap(nullptr, all, PROT_READ, MAP_PRIVATE, file, static_cast<off_t>(start - static_cast<int64_t>(offset)));
    if (base == MAP_FAILED) return nullptr;
    entry->n_bytes = all, entry->offset = offset, entry->lost = false;
    entry->base.store(static_cast<char *>(base), std::memory_order_release);
    return entry;
  }
  static void unmap(Mapping *entry) {
    const std::lock_guard<std::mutex> lock(mutex_);
    munmap(entry->base.exchange(nullptr), entry->n_bytes);
  }
  // How many were lost since the start of the process.
  static int n_lost() { return n_lost_.load(); }

 private:
  static constexpr int kMax = 8192;  // of 65,530 that Linux allows

  static Mapping *free_entry() {
    for (Mapping &entry : entries_)
      if (!entry.base.load()) return &entry;
    return nullptr;
  }
  static bool watch() {
    if (watching_) return true;
    struct sigaction action {};
    action.sa_sigaction = on_bus_error;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    sigemptyset(&action.sa_mask);
    return watching_ = sigaction(SIGBUS, &action, &previous_) == 0;
  }
  // Runs on the thread that reads. mmap is not among the functions that POSIX allows here, but it is a mere system call.
  static void on_bus_error(int number, siginfo_t *info, void *context) {
    const int error = errno;
    for (Mapping &entry : entries_)
      if (entry.holds(static_cast<char *>(info->si_addr)) && put_zeros(entry)) {
        errno = error;
        return;
      }
    if (previous_.sa_flags & SA_SIGINFO) previous_.sa_sigaction(number, info, context);
    else if (previous_.sa_handler == SIG_DFL || previous_.sa_handler == SIG_IGN) sigaction(number, &previous_, nullptr);
    else previous_.sa_handler(number);
  }
  static bool put_zeros(Mapping &entry) {
    constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
    if (mmap(entry.base.load(), entry.n_bytes, PROT_READ, kFlags, -1, 0) == MAP_FAILED) return false;
    if (!entry.lost.exchange(true)) n_lost_++;
    return true;
  }

  static inline Mapping entries_[kMax];
  static inline std::mutex mutex_;  // of those who map, not of the handler
  static inline bool watching_ = false;
  static inline struct sigaction previous_;
  static inline std::atomic<int> n_lost_{0};
};

}  // namespace mdi
