// Rows of a message as the products read them: blocks of 32 inputs, all rows of a block together, so that the rows of a
// tile lie at constant distances.
#pragma once

#include "functions.hpp"
#include "weights.hpp"

namespace mdi {

struct Rows {
  int n;             // rows
  float *floats;     // [I / 32][n][32]
  int8_t *bytes;     // the same in integers: value = integer * scale
  int16_t *shorts;   // the same, where the CPU multiplies 8-bit weights in 16 bits
  float *scales;     // [I / 32][n]
  int32_t *sums;     // of the integers, [I / 32][n]

  template <class Value> const Value *integers() const {
    if constexpr (sizeof(Value) == 1) return bytes;
    else return shorts;
  }

  // `count` rows of `n_blocks` blocks that lie apart from others, after `first` rows of the same size.
  Rows part(int first, int count, int n_blocks) const {
    const int64_t block = static_cast<int64_t>(first) * n_blocks, input = block * kBlock;
    return {count, floats + input, bytes + input, shorts + input, scales + block, sums + block};
  }

  // Fills in row `r` from `x`, which has a multiple of 32 elements.
  void put_floats(int r, const float *x, int n_blocks) const {
    for (int b = 0; b < n_blocks; b++) memcpy(floats + (static_cast<int64_t>(b) * n + r) * kBlock, x + b * kBlock, kBlock * sizeof(float));
  }
  void put_integers(int r, const float *x, int n_blocks) const {
    for (int b = 0; b < n_blocks; b++) put_block(static_cast<int64_t>(b) * n + r, x + b * kBlock);
  }

 private:
  // The largest magnitude becomes 127. The scale of a block with an infinity or a NaN is one too, and its integers are
  // zeros, so that whatever is computed with it is NaN.
  void put_block(int64_t at, const float *x) const {
    const Floats low = load(x), high = load(x + kLanes);
    // As integers, magnitudes have the order of the floats, with infinity and NaN above them.
    const Ints most = max(as_ints(absolute(low)), as_ints(absolute(high)));
    int32_t lane[kLanes], largest = 0;
    store(lane, most);
    for (int32_t m : lane) largest = m > largest ? m : largest;
    const bool finite = largest < 0x7f800000;
    const float scale = float_with(static_cast<uint32_t>(largest)) / 127, inverse = scale != 0 ? 1 / scale : 0;
    const Ints a = finite ? rounded(low * splat(inverse)) : splat(0);
    const Ints b = finite ? rounded(high * splat(inverse)) : splat(0);
    store(bytes + at * kBlock, a);
    store(bytes + at * kBlock + kLanes, b);
    if constexpr (sizeof(Dot8::Value) == 2) {
      store(shorts + at * kBlock, a);
      store(shorts + at * kBlock + kLanes, b);
    }
    store(lane, a + b);
    int32_t sum = 0;
    for (int32_t s : lane) sum += s;
    scales[at] = scale;
    sums[at] = sum;
  }
  static INLINE Ints rounded(Floats x) {
    return as_ints(x + splat(kRounding)) - splat(static_cast<int32_t>(bits_of(kRounding)));
  }
};

}  // namespace mdi
