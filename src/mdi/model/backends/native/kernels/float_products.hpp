// Products of rows with weights of floats: in sixteen lanes of outputs, summed over `kFloatBlocks` blocks of inputs, and these
// sums added to each other from the first to the last.
#pragma once

#include <type_traits>

#include "prefetch.hpp"
#include "rows.hpp"

namespace mdi {

constexpr int kManyGroups = 16;  // whose totals stay in the cache while many rows pass: 128 rows have 128 kB of them
constexpr int kTileWeights = kBlock * kGroup;

// Where results go: (M, stride), with room for all padded outputs.
struct Target {
  float *y;
  int stride;

  float *at(int row, int group) const { return y + static_cast<int64_t>(row) * stride + group * kGroup; }
};

// Some blocks of some groups of weights.
template <class Number> struct Panel {
  const Number *weights;
  int64_t distance;  // from one group's to the next's
  int first_block, n_blocks;
};

// Sums of the products of a tile of R rows `x`, from the panel's first block on, with a panel of G groups. Registers
// permitting, an input that was spread over the lanes serves several groups: loads would take longer than products otherwise.
// `ahead` is called with the weights of each block.
template <int R, int G, class Number, class Ahead>
INLINE void sum_products(const Panel<Number> &panel, const float *x, Ahead &&ahead, Floats (&sums)[G][R]) {
  const Number *weights = panel.weights;
#pragma GCC unroll 2
  for (int g = 0; g < G; g++)
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) sums[g][r] = splat(0.0f);
  for (int b = 0; b < panel.n_blocks; b++, weights += kTileWeights) {
    ahead(weights);
    const float *row = x + static_cast<int64_t>(b) * R * kBlock;
#pragma GCC unroll 8
    for (int k = 0; k < kBlock; k++) {
      Floats w[G];
      for (int g = 0; g < G; g++) w[g] = load(weights + g * panel.distance + k * kGroup);
#pragma GCC unroll 16
      for (int r = 0; r < R; r++) {
        const Floats input = splat(row[r * kBlock + k]);
#pragma GCC unroll 2
        for (int g = 0; g < G; g++) {
          sums[g][r] = fma(w[g], input, sums[g][r]);
          keep(sums[g][r]);
        }
      }
    }
  }
}

// Asks for weights that come later in the same groups.
template <int G, class Number> struct AheadInGroups {
  int64_t distance;

  INLINE void operator()(const Number *weights) const {
    constexpr int kAheadWeights = kAhead / 2 / sizeof(Number);  // half in each of two groups, and no more in one
    for (int g = 0; g < G; g++) prefetch(weights + g * distance + kAheadWeights, kTileWeights * sizeof(Number));
  }
};

// The rows from `first` on, all blocks of G groups.
template <int R, int G, class Number>
INLINE void multiply(FloatTile<Number>, const uint8_t *tiles, int n_blocks, const Rows &x, int first, Floats (&totals)[G][R]) {
  const Number *weights = reinterpret_cast<const Number *>(tiles);
  const int64_t distance = static_cast<int64_t>(n_blocks) * kTileWeights;
  for (int b = 0; b < n_blocks; b += kFloatBlocks) {
    Floats sums[G][R];
    const Panel<Number> panel{weights + static_cast<int64_t>(b) * kTileWeights, distance, b, std::min(kFloatBlocks, n_blocks - b)};
    sum_products(panel, x.panel({first, R}, b), AheadInGroups<G, Number>{distance}, sums);
    for (int g = 0; g < G; g++)
      for (int r = 0; r < R; r++) totals[g][r] = totals[g][r] + sums[g][r];
  }
}

// ---- many rows
//
// All rows pass the weights of one sum before the next, and of some groups of outputs before others: so neither the inputs of
// that sum nor the totals, which wait where the results go, leave the cache meanwhile. Weights of 16 bits are widened once for
// all rows, not for each tile of them. While the rows pass a panel of weights, the next one comes from memory, bit by bit.

// Asks for the weights of G groups in equal parts.
template <int G> class AheadInParts {
 public:
  AheadInParts(const void *weights, int64_t distance_bytes, int n_bytes, int n_parts)
      : at_(static_cast<const char *>(weights)), end_(at_ + n_bytes), distance_(distance_bytes),
        part_((n_bytes / kLine + n_parts - 1) / n_parts * kLine) {}

  INLINE void operator()(const float *) {
    for (const char *stop = std::min(at_ + part_, end_); at_ < stop; at_ += kLine)
      for (int g = 0; g < G; g++) __builtin_prefetch(at_ + g * distance_);
  }

 private:
  const char *at_, *end_;
  const int64_t distance_;
  const int part_;
};

// The rows from `first` on. `group` is the panel's first.
template <int R, int G>
void add_panel(const Panel<float> &panel, const Linear &linear, int group, const Rows &x, int first, const Target &to,
               AheadInParts<G> &ahead) {
  Floats sums[G][R];
  sum_products(panel, x.panel({first, R}, panel.first_block), ahead, sums);
  const bool is_first = panel.first_block == 0, is_last = panel.first_block + panel.n_blocks == linear.blocks();
  const float *bias = is_last ? linear.bias : nullptr;
  // Unrolled, or else GCC would keep the sums in memory.
#pragma GCC unroll 2
  for (int g = 0; g < G; g++)
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
      float *y = to.at(first + r, group + g);
      const Floats total = (is_first ? splat(0.0f) : load(y)) + sums[g][r];
      store(y, bias ? total + load(bias + (group + g) * kGroup) : total);
    }
}

// A tile of up to R rows.
template <int R, int G>
void add_panel_up_to(const RowTile &rows, const Panel<float> &panel, const Linear &linear, int group, const Rows &x,
                     const Target &to, AheadInParts<G> &ahead) {
  if constexpr (R > 1)
    if (rows.n < R) return add_panel_up_to<R - 1, G>(rows, panel, linear, group, x, to, ahead);
  add_panel<R, G>(panel, linear, group, x, rows.first, to, ahead);
}

// Where a panel begins: group of outputs, block of inputs.
struct Corner {
  int group, block;
};

// Adds one sum of G groups, for all rows. `next` is the panel that comes after this one.
template <int G, class Number>
void add_groups(const Linear &linear, const Corner &own, const Corner &next, const Rows &x, const Target &to) {
  const int n_blocks = std::min(kFloatBlocks, linear.blocks() - own.block);
  const int64_t distance = static_cast<int64_t>(linear.blocks()) * kTileWeights;
  const auto at = [&](const Corner &corner) {
    return reinterpret_cast<const Number *>(linear.tiles) + corner.group * distance + corner.block * kTileWeights;
  };
  const auto add = [&](const Panel<float> &panel) {
    const int n_bytes = std::min(kFloatBlocks, linear.blocks() - next.block) * kTileWeights * static_cast<int>(sizeof(Number));
    AheadInParts<G> ahead(at(next), distance * sizeof(Number), n_bytes, x.n_tiles() * n_blocks);
    for (int i = 0; i < x.n_tiles(); i++)
      add_panel_up_to<kTileRows, G>(x.tile(i), panel, linear, own.group, x, to, ahead);
  };
  const Number *weights = at(own);
  if constexpr (std::is_same_v<Number, float>) {
    add({weights, distance, own.block, n_blocks});
  } else {
    constexpr int64_t kPanelWeights = kFloatBlocks * kTileWeights;
    alignas(64) float widened[G * kPanelWeights];
    for (int g = 0; g < G; g++)
      for (int i = 0; i < n_blocks * kTileWeights; i += kLanes)
        store(widened + g * kPanelWeights + i, load(weights + g * distance + i));
    add({widened, kPanelWeights, own.block, n_blocks});
  }
}

// The outputs of the groups `begin <= g < end`, for all rows.
template <class Number> void multiply_many(const Linear &linear, int begin, int end, const Rows &x, const Target &to) {
  const int n_blocks = linear.blocks();
  for (int chunk = begin; chunk < end; chunk += kManyGroups) {
    const int stop = std::min(chunk + kManyGroups, end);
    for (int block = 0; block < n_blocks; block += kFloatBlocks)
      for (int group = chunk; group < stop;) {
        const int n_groups = std::min(kFloatGroups, stop - group);
        Corner next{group + n_groups, block};
        if (next.group == stop) next = {chunk, block + kFloatBlocks};
        if (next.block >= n_blocks) next = {stop, stop < end ? 0 : n_blocks};  // nothing comes after the last
        if (n_groups == kFloatGroups) add_groups<kFloatGroups, Number>(linear, {group, block}, next, x, to);
        else add_groups<1, Number>(linear, {group, block}, next, x, to);
        group += n_groups;
      }
  }
}

}  // namespace mdi
