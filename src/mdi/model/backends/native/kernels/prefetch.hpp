// Asking for memory before it is needed, so that it has come by then.
#pragma once

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

}  // namespace mdi
