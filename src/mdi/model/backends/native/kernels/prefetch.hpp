// Asking for memory before it is needed, so that it has come by then.
#pragma once

#include <algorithm>
#include <cstdint>

#include "lanes.hpp"

namespace mdi {

constexpr int kLine = 64;  // bytes of a cache line
// Bytes between what is needed and what is asked for: more than come while an access to memory takes, and fewer than the
// first cache holds.
constexpr int kAhead = 8192;

INLINE void prefetch(const void *memory, int n_bytes) {
  for (int i = 0; i < n_bytes; i += kLine) __builtin_prefetch(static_cast<const char *>(memory) + i);
}

// What is read from its first byte to its last.
struct Region {
  const uint8_t *memory;
  int64_t n_bytes;
};

// Asks for what a region holds `kAhead` bytes ahead, and then for as much of the one that is read next.
class AheadInOrder {
 public:
  AheadInOrder(const Region &own, const Region &next)
      : at_(std::min<int64_t>(kAhead, own.n_bytes)), end_(own.n_bytes), stop_(own.n_bytes + next.n_bytes),
        own_(reinterpret_cast<uintptr_t>(own.memory)), next_(reinterpret_cast<uintptr_t>(next.memory) - own.n_bytes) {}

  // While as many bytes are read.
  INLINE void operator()(int n_bytes) {
    for (int i = 0; i < n_bytes; i += kLine)
      if (at_ + i < stop_) __builtin_prefetch(reinterpret_cast<const void *>((at_ + i < end_ ? own_ : next_) + at_ + i));
    at_ += n_bytes;
  }

 private:
  int64_t at_;  // counts on from one region to the next
  const int64_t end_, stop_;
  const uintptr_t own_, next_;  // addresses of byte 0, the second one's too
};

}  // namespace mdi
