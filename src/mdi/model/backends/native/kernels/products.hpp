// Products of rows with packed weights: y (M, O) = x (M, I) W^T + b.
//
// A tile of rows x 16 outputs keeps its sums in registers while it passes all inputs. Each weight is loaded once for all
// rows of the tile and multiplied with one input of each row, which is spread over the lanes: so outputs are lanes,
// and no lanes are ever added. The rows of a tile never meet.
#pragma once

#include "float_products.hpp"

namespace mdi {

constexpr int kPanelGroups = 4;  // groups whose weights stay in the cache while all rows pass

// The integer products of one block.
template <int R, class Tile>
INLINE void block_products(const uint8_t *tile, const Rows &x, int64_t at, Ints (&products)[R]) {
  using Dot = typename Tile::Dot;
  const auto *row = x.integers<typename Dot::Value>() + at * kBlock;
  typename Dot::Sums sums[(R + Dot::kRows - 1) / Dot::kRows] = {};
  if constexpr (std::is_same_v<Tile, Int8Tile>)
    if constexpr (Dot::kOffset != 0)
      for (int r = 0; r < R; r++) sums[r] = splat(-Dot::kOffset * x.sums[at + r]);
#pragma GCC unroll 8
  for (int step = 0; step < kBlock / Dot::kInputs; step++)
    Dot::template add<R>(sums, tile + Tile::kHead + step * Dot::kStepBytes, row + step * Dot::kInputs);
#pragma GCC unroll 16
  for (int r = 0; r < R; r++) products[r] = Dot::total(sums[r / Dot::kRows], r % Dot::kRows);
}

template <int R>
INLINE void multiply(Int8Tile, const uint8_t *tiles, int n_blocks, const Rows &x, int first, Floats (&all)[1][R]) {
  Floats(&totals)[R] = all[0];
  for (int b = 0; b < n_blocks; b++, tiles += Int8Tile::kBytes) {
    if (first == 0) prefetch(tiles + kAhead, Int8Tile::kBytes);  // for all rows that pass
    const int64_t at = RowTile{first, R}.at(b, n_blocks);
    Ints products[R];
    block_products<R, Int8Tile>(tiles, x, at, products);
    const Floats scale = load(reinterpret_cast<const Half *>(tiles));
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) totals[r] = fma(to_floats(products[r]), scale * splat(x.scales[at + r]), totals[r]);
  }
}

template <int R>
INLINE void multiply(Int4Tile, const uint8_t *tiles, int n_blocks, const Rows &x, int first, Floats (&all)[1][R]) {
  Floats(&totals)[R] = all[0];
  for (int b = 0; b < n_blocks; b++, tiles += Int4Tile::kBytes) {
    if (first == 0) prefetch(tiles + kAhead, Int4Tile::kBytes);  // for all rows that pass
    const int64_t at = RowTile{first, R}.at(b, n_blocks);
    Ints products[R];
    block_products<R, Int4Tile>(tiles, x, at, products);
    const Half *head = reinterpret_cast<const Half *>(tiles);
    const Floats scale = load(head), minimum = load(head + kGroup);
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
      const Floats value = fma(to_floats(products[r]), scale, minimum * splat(static_cast<float>(x.sums[at + r])));
      totals[r] = fma(value, splat(x.scales[at + r]), totals[r]);
    }
  }
}

template <int R, int G, class Tile>
void multiply_tile(const Linear &linear, int group, const Rows &x, int first, const Target &to) {
  Floats totals[G][R];
  for (int g = 0; g < G; g++)
    for (int r = 0; r < R; r++) totals[g][r] = splat(0.0f);
  const int n_blocks = linear.blocks();
  multiply<R>(Tile{}, linear.tiles + static_cast<int64_t>(group) * n_blocks * Tile::kBytes, n_blocks, x, first, totals);
  for (int g = 0; g < G; g++)
    for (int r = 0; r < R; r++) {
      const int output = (group + g) * kGroup;
      store(to.at(first + r, group + g), linear.bias ? totals[g][r] + load(linear.bias + output) : totals[g][r]);
    }
}

// A tile of up to R rows, with some groups.
template <int R, class Tile>
void multiply_rows(const Linear &linear, int begin, int end, const Rows &x, const RowTile &rows, const Target &to) {
  if constexpr (R > 1)
    if (rows.n < R) return multiply_rows<R - 1, Tile>(linear, begin, end, x, rows, to);
  // A few rows wait for memory, which is faster for one group after the other.
  constexpr int G = Tile::kQuantized || R < 4 ? 1 : kFloatGroups;
  int group = begin;
  for (; group + G <= end; group += G) multiply_tile<R, G, Tile>(linear, group, x, rows.first, to);
  for (; group < end; group++) multiply_tile<R, 1, Tile>(linear, group, x, rows.first, to);
}

// The outputs of the groups `begin <= g < end`, for all rows.
inline void multiply(const Linear &linear, int begin, int end, const Rows &x, const Target &to) {
  with_tile(linear.type, [&](auto t) {
    using Tile = decltype(t);
    if constexpr (!Tile::kQuantized)
      if (x.n > kTileRows) return multiply_many<typename Tile::Weight>(linear, begin, end, x, to);
    for (int panel = begin; panel < end; panel += kPanelGroups) {
      const int stop = std::min(panel + kPanelGroups, end);
      for (int i = 0; i < x.n_tiles(); i++) multiply_rows<kTileRows, Tile>(linear, panel, stop, x, x.tile(i), to);
    }
  });
}

}  // namespace mdi
