// Rows of a message as the products read them: blocks of 32 inputs, all rows of a block together, so that the rows of a
// tile lie at constant distances. Floats of more rows than a tile has lie in panels of eight blocks instead, because what
// one tile reads of a panel fits into the first cache only if it lies together.
#pragma once

#include "functions.hpp"
#include "weights.hpp"

namespace mdi {

constexpr int kFloatBlocks = 8;  // whose products with floats are summed before they are added to the rest: less rounding
constexpr int kPanelInputs = kFloatBlocks * kBlock;

inline int panels(int n_blocks) { return (n_blocks + kFloatBlocks - 1) / kFloatBlocks; }

// A block of 32 numbers in 8 bits: value = integer * scale.
struct Rounded {
  Ints low, high;
  float scale;
};

INLINE Ints rounded(Floats x) { return as_ints(x + splat(kRounding)) - splat(static_cast<int32_t>(bits_of(kRounding))); }

// The largest magnitude becomes 127. The scale of a block with an infinity or a NaN is one too, and its integers are
// zeros, so that whatever is computed with it is NaN.
INLINE Rounded rounded_block(Floats low, Floats high) {
  // As integers, magnitudes have the order of the floats, with infinity and NaN above them.
  const Ints most = max(as_ints(absolute(low)), as_ints(absolute(high)));
  int32_t lane[kLanes], largest = 0;
  store(lane, most);
  for (int32_t m : lane) largest = m > largest ? m : largest;
  if (largest >= 0x7f800000) return {splat(0), splat(0), float_with(static_cast<uint32_t>(largest))};
  const float scale = float_with(static_cast<uint32_t>(largest)) / 127, inverse = scale != 0 ? 1 / scale : 0;
  return {rounded(low * splat(inverse)), rounded(high * splat(inverse)), scale};
}

struct Rows {
  int n;             // rows
  float *floats;     // [I / 32][n][32], or [I / 256][n][256]
  int8_t *bytes;     // in integers, [I / 32][n][32]: value = integer * scale
  int16_t *shorts;   // the same, where the CPU multiplies 8-bit weights in 16 bits
  float *scales;     // [I / 32][n]
  int32_t *sums;     // of the integers, [I / 32][n]

  template <class Value> const Value *integers() const {
    if constexpr (sizeof(Value) == 1) return bytes;
    else return shorts;
  }

  bool in_panels() const { return n > kTileRows; }
  // The floats of a block of row `r`.
  template <bool kInPanels> float *block(int b, int r) const {
    if constexpr (kInPanels) return floats + (static_cast<int64_t>(b / kFloatBlocks) * n + r) * kPanelInputs + b % kFloatBlocks * kBlock;
    else return floats + (static_cast<int64_t>(b) * n + r) * kBlock;
  }

  // `count` rows of `n_blocks` blocks that lie apart from others, after `first` rows of the same size.
  Rows part(int first, int count, int n_blocks) const {
    const int64_t block = static_cast<int64_t>(first) * n_blocks, input = block * kBlock;
    const int64_t panel = static_cast<int64_t>(first) * panels(n_blocks);
    return {count, floats + panel * kPanelInputs, bytes + input, shorts + input, scales + block, sums + block};
  }

  // Fills in row `r` from `x`, which has a multiple of 32 elements.
  void put_floats(int r, const float *x, int n_blocks) const {
    for (int b = 0; b < n_blocks; b++)
      memcpy(in_panels() ? block<true>(b, r) : block<false>(b, r), x + b * kBlock, kBlock * sizeof(float));
  }
  void put_integers(int r, const float *x, int n_blocks) const {
    for (int b = 0; b < n_blocks; b++) put_block(static_cast<int64_t>(b) * n + r, x + b * kBlock);
  }

 private:
  void put_block(int64_t at, const float *x) const {
    const Rounded rounded = rounded_block(load(x), load(x + kLanes));
    store(bytes + at * kBlock, rounded.low);
    store(bytes + at * kBlock + kLanes, rounded.high);
    if constexpr (sizeof(Dot8::Value) == 2) {
      store(shorts + at * kBlock, rounded.low);
      store(shorts + at * kBlock + kLanes, rounded.high);
    }
    int32_t lane[kLanes], sum = 0;
    store(lane, rounded.low + rounded.high);
    for (int32_t s : lane) sum += s;
    scales[at] = rounded.scale;
    sums[at] = sum;
  }
};

}  // namespace mdi
