// Memory of its own for what lies between the steps of a message. It grows to the largest message, and then stays.
#pragma once

#include <cstdlib>
#include <new>

#include "pool.hpp"
#include "products.hpp"

namespace mdi {

class Memory {
 public:
  Memory() = default;
  Memory(const Memory &) = delete;
  Memory &operator=(const Memory &) = delete;
  ~Memory() { std::free(base_); }

  // `n_bytes` of zeros. Throws `std::bad_alloc`.
  void renew(size_t n_bytes) {
    std::free(base_);
    n_bytes = (n_bytes + kPage - 1) / kPage * kPage;
    base_ = next_ = static_cast<char *>(std::aligned_alloc(kPage, n_bytes));
    if (!base_) throw std::bad_alloc();
    memset(base_, 0, n_bytes);
  }
  template <class T> T *take(int64_t n) {
    T *taken = reinterpret_cast<T *>(next_);
    next_ += bytes<T>(n);
    return taken;
  }
  template <class T> static size_t bytes(int64_t n) { return (n * sizeof(T) + kLine - 1) / kLine * kLine; }

 private:
  static constexpr size_t kPage = 4096;
  char *base_ = nullptr, *next_ = nullptr;
};

inline int64_t float_inputs(int64_t n_rows, int width) { return n_rows * float_blocks(padded(width) / kBlock) * kBlock; }

// Rows of up to `width` inputs, for the products.
inline size_t row_bytes(int64_t n_rows, int width) {
  const int64_t n = n_rows * padded(width), blocks = n / kBlock;
  return Memory::bytes<float>(float_inputs(n_rows, width)) + Memory::bytes<int8_t>(n) + Memory::bytes<int16_t>(n) +
         Memory::bytes<float>(blocks) + Memory::bytes<int32_t>(blocks);
}
inline Rows take_rows(Memory &memory, int64_t n_rows, int width) {
  const int64_t n = n_rows * padded(width), blocks = n / kBlock;
  Rows rows{};
  rows.floats = memory.take<float>(float_inputs(n_rows, width));
  rows.bytes = memory.take<int8_t>(n);
  rows.shorts = memory.take<int16_t>(n);
  rows.scales = memory.take<float>(blocks);
  rows.sums = memory.take<int32_t>(blocks);
  return rows;
}

constexpr int kTasksPerThread = 4;  // so that a thread that comes late costs little

// All outputs of a linear layer, by the threads of a pool.
inline void multiply(Pool &pool, const Linear &linear, const Rows &x, const Target &to) {
  const int groups = linear.groups();
  const int n_tasks = pool.n_threads() == 1 ? 1 : std::min(groups, pool.n_threads() * kTasksPerThread);
  pool.run(n_tasks, [&](int i, int) { multiply(linear, groups * i / n_tasks, groups * (i + 1) / n_tasks, x, to); });
}

// Lays out row `r` as the products with `linear` read it.
inline void put_row(const Rows &rows, int r, const float *x, const Linear &linear) {
  if (linear.quantized()) rows.put_integers(r, x, linear.blocks());
  else rows.put_floats(r, x, linear.blocks());
}

}  // namespace mdi
