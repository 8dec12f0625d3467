// Rows of a message as the products read them: in tiles of rows; of a tile, block by block of 32 inputs, all of its rows. So
// what passes the weights together lies together, and its rows at constant distances.
#pragma once

#include "functions.hpp"
#include "weights.hpp"

namespace mdi {

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

constexpr int kFloatBlocks = 8;  // whose products with floats are summed before they are added to the rest: less rounding

// Blocks that a row of floats has room for: whole panels.
constexpr int float_blocks(int n_blocks) { return (n_blocks + kFloatBlocks - 1) / kFloatBlocks * kFloatBlocks; }

// Rows that pass the weights together.
struct RowTile {
  int first, n;

  // How many blocks lie before its block `b`, of `n_blocks` of each row.
  int64_t at(int b, int n_blocks) const { return static_cast<int64_t>(first) * n_blocks + static_cast<int64_t>(b) * n; }
};

struct Rows {
  int n;             // rows
  float *floats;     // [I / 256][tile][8][row][32]: all tiles pass a panel of 8 blocks before the next one
  int8_t *bytes;     // in integers, [tile][I / 32][row][32]: value = integer * scale
  int16_t *shorts;   // the same, where the CPU multiplies 8-bit weights in 16 bits
  float *scales;     // [tile][I / 32][row]
  int32_t *sums;     // of the integers, [tile][I / 32][row]

  template <class Value> const Value *integers() const {
    if constexpr (sizeof(Value) == 1) return bytes;
    else return shorts;
  }

  // Tiles are as even as possible.
  int n_tiles() const { return (n + kTileRows - 1) / kTileRows; }
  RowTile tile(int i) const {
    const int first = n * i / n_tiles();
    return {first, n * (i + 1) / n_tiles() - first};
  }

  // The floats of a tile in the panel of block `b`.
  float *panel(const RowTile &tile, int b) const {
    return floats + (static_cast<int64_t>(b / kFloatBlocks) * n + tile.first) * kFloatBlocks * kBlock;
  }

  // `count` rows of `n_blocks` blocks that lie apart from others, after `first` rows of the same size.
  Rows part(int first, int count, int n_blocks) const {
    const int64_t block = static_cast<int64_t>(first) * n_blocks, input = block * kBlock;
    const int64_t float_input = static_cast<int64_t>(first) * float_blocks(n_blocks) * kBlock;
    return {count, floats + float_input, bytes + input, shorts + input, scales + block, sums + block};
  }

  // Fills in row `r` from `x`, which has a multiple of 32 elements.
  void put_floats(int r, const float *x, int n_blocks) const {
    const RowTile own = tile_of(r);
    for (int b = 0; b < n_blocks; b++)
      memcpy(panel(own, b) + (b % kFloatBlocks * own.n + r - own.first) * kBlock, x + b * kBlock, kBlock * sizeof(float));
  }
  void put_integers(int r, const float *x, int n_blocks) const {
    const RowTile own = tile_of(r);
    for (int b = 0; b < n_blocks; b++) put_block(own.at(b, n_blocks) + r - own.first, x + b * kBlock);
  }

 private:
  RowTile tile_of(int r) const { return tile(((r + 1) * n_tiles() - 1) / n); }
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
