// Attention of a message's rows over keys and values in slots. D head size.
#pragma once

#include <algorithm>
#include <cmath>

#include "cache.hpp"
#include "functions.hpp"

namespace mdi {

// What queries see: `first <= position < stop`.
struct Sight {
  int first, stop;
};

struct Scaling {
  float scale;
  float cap;  // of softcapping; 0: none

  INLINE Floats operator()(Floats score) const {
    const Floats scaled = score * splat(scale);
    return cap == 0 ? scaled : tanh(scaled / splat(cap)) * splat(cap);
  }
};

// So many lanes of 16 are summed side by side that additions need not wait for each other, and registers suffice.
constexpr int side_by_side(int n_queries) {
  constexpr int registers = kLanes / lanes_of<NativeFloats>;
  const int n = kAccumulators / (n_queries * registers);
  return n < 1 ? 1 : n > 4 ? 4 : n;
}

// Scores of Q queries, D apart, with B blocks of 16 positions -> rows of `scores`, `stride` apart.
template <int Q, int B, class T>
INLINE void score_blocks(const Keys<T> &keys, int head_size, const float *q, AheadInOrder &ahead, float *scores, int stride) {
  Floats sums[Q][B];
  for (int j = 0; j < Q; j++)
    for (int b = 0; b < B; b++) sums[j][b] = splat(0.0f);
  // One loop, or else GCC would keep the sums in memory.
  for (int d = 0; d < head_size; d++) {
    ahead(B * kLanes * sizeof(T));
#pragma GCC unroll 4
    for (int b = 0; b < B; b++) {
      const Floats k = keys.load(b, d);
#pragma GCC unroll 8
      for (int j = 0; j < Q; j++) {
        sums[j][b] = fma(k, splat(q[j * head_size + d]), sums[j][b]);
        keep(sums[j][b]);
      }
    }
  }
  ahead(B * kLanes * keys.sizes.scale_bytes());
  for (int j = 0; j < Q; j++)
    for (int b = 0; b < B; b++) store(scores + j * stride + b * kLanes, sums[j][b]);
}

template <int Q, class T>
void score(const Keys<T> &keys, int head_size, int n_blocks, const float *q, AheadInOrder ahead, float *scores, int stride) {
  constexpr int B = side_by_side(Q);
  int b = 0;
  for (; b + B <= n_blocks; b += B) score_blocks<Q, B>(keys.from(b), head_size, q, ahead, scores + b * kLanes, stride);
  for (; b < n_blocks; b++) score_blocks<Q, 1>(keys.from(b), head_size, q, ahead, scores + b * kLanes, stride);
}

// Scores of one query, from position `first` on, a multiple of 16 -> weights that are not divided by their sum yet, zeros
// where the query sees nothing. Returns 1 / sum.
inline float weigh(float *scores, int first, int n_blocks, const Sight &sight, const Scaling &scaling) {
  const Floats hidden = splat(-__builtin_inff());
  Floats most = hidden, sums = splat(0.0f);
  for (int b = 0; b < n_blocks; b++) {
    const Ints position = lane_numbers() + splat(first + b * kLanes);
    const Ints seen = (position > splat(sight.first - 1)) & (position < splat(sight.stop));
    const Floats score = select(seen, scaling(load(scores + b * kLanes)), hidden);
    most = max(most, score);
    store(scores + b * kLanes, score);
  }
  const Floats top = splat(largest(most));
  for (int b = 0; b < n_blocks; b++) {
    const Floats weight = exp(load(scores + b * kLanes) - top);
    store(scores + b * kLanes, weight);
    sums = sums + weight;
  }
  return 1 / sum(sums);
}

// Adds values of `n` positions, with the weights of Q queries, to 16 B elements of each of `y`, from `first` on.
template <int Q, int B, class T>
INLINE void add_values(const Values<T> &values, int first, int n, const float *weights, int stride, AheadInOrder &ahead, float *y,
                       int size) {
  Floats sums[Q][B];
  for (int j = 0; j < Q; j++)
    for (int b = 0; b < B; b++) sums[j][b] = load(y + j * size + first + b * kLanes);
  for (int t = 0; t < n; t++) {
    ahead(B * kLanes * sizeof(T));
#pragma GCC unroll 4
    for (int b = 0; b < B; b++) {
      const Floats v = values.load(t, first + b * kLanes);
#pragma GCC unroll 8
      for (int j = 0; j < Q; j++) {
        sums[j][b] = fma(v, splat(weights[j * stride + t]), sums[j][b]);
        keep(sums[j][b]);
      }
    }
  }
  for (int j = 0; j < Q; j++)
    for (int b = 0; b < B; b++) store(y + j * size + first + b * kLanes, sums[j][b]);
}

constexpr int kCachedValues = 64;  // whose elements are all summed before others, so that they come from memory in order

// All elements of the values of `n` positions.
template <int Q, class T>
void sum_values(const Values<T> &values, int size, int n, const float *weights, int stride, AheadInOrder ahead, float *y) {
  constexpr int B = side_by_side(Q);
  memset(y, 0, Q * size * sizeof(float));
  for (int t = 0; t < n; t += kCachedValues) {
    const int count = std::min(kCachedValues, n - t);
    int i = 0;
    const Values<T> cached = values.from(t);
    for (; i + B * kLanes <= size; i += B * kLanes) add_values<Q, B>(cached, i, count, weights + t, stride, ahead, y, size);
    for (; i < size; i += kLanes) add_values<Q, 1>(cached, i, count, weights + t, stride, ahead, y, size);
    ahead(count * values.sizes.scale_bytes());
  }
}

// Memory of one thread.
struct AttentionMemory {
  float *queries;  // [kQueries][D]
  float *scores;   // [kQueries][context]
  float *results;  // [kQueries][D']
};

// Keys and values of one kv head, and what is read after them.
struct Source {
  int slot, head;
  Region next;
};

// The blocks of 16 positions in which `sight` lies.
struct KeyBlocks {
  int begin, n;

  explicit KeyBlocks(const Sight &sight) : begin(sight.first / kLanes), n((sight.stop + kLanes - 1) / kLanes - begin) {}
};

// Q queries of a kv head -> `memory.results`. A position that only some of them see has weight zero for the others.
template <int Q, class T>
void attend(const Cache<T> &cache, const Source &source, const Sight *sights, const Scaling &scaling,
            const AttentionMemory &memory) {
  Sight all = sights[0];
  for (int j = 1; j < Q; j++) all = {std::min(all.first, sights[j].first), std::max(all.stop, sights[j].stop)};
  const KeyBlocks blocks(all);
  const int first_position = blocks.begin * kLanes, n = all.stop - all.first, size = cache.value_size(), stride = cache.context;
  const Keys<T> keys = cache.keys_of(source.slot, source.head).from(blocks.begin);
  const Values<T> values = cache.values_of(source.slot, source.head).from(all.first);
  const AheadInOrder ahead_in_keys(keys.region(blocks.n), values.region(n)), ahead_in_values(values.region(n), source.next);
  score<Q>(keys, cache.head_size, blocks.n, memory.queries, ahead_in_keys, memory.scores, stride);
  float inverse[Q];
  for (int j = 0; j < Q; j++) inverse[j] = weigh(memory.scores + j * stride, first_position, blocks.n, sights[j], scaling);
  const float *weights = memory.scores + (all.first - first_position);
  sum_values<Q>(values, size, n, weights, stride, ahead_in_values, memory.results);
  for (int j = 0; j < Q; j++)
    for (int i = 0; i < size; i += kLanes) {
      float *y = memory.results + j * size + i;
      store(y, load(y) * splat(inverse[j]));
    }
}

template <int Q, class T>
void attend_up_to(int n, const Cache<T> &cache, const Source &source, const Sight *sights, const Scaling &scaling,
                  const AttentionMemory &memory) {
  if constexpr (Q > 1)
    if (n < Q) return attend_up_to<Q - 1>(n, cache, source, sights, scaling, memory);
  attend<Q>(cache, source, sights, scaling, memory);
}

// Rotary embedding of one head (arXiv 2104.09864): element i turns with element i + n / 2, or neighbours with each other,
// which then leave in the order of the first kind. `sin` is negative for the first half.
inline void rotate(float *x, const float *cos, const float *sin, int n, bool neighbours, float *scratch) {
  const int half = n / 2;
  int i = 0;
  for (; !neighbours && i + kLanes <= half; i += kLanes) {
    const Floats a = load(x + i), b = load(x + i + half);
    store(scratch + i, a * load(cos + i) + b * load(sin + i));
    store(scratch + i + half, b * load(cos + i + half) + a * load(sin + i + half));
  }
  for (; i < half; i++) {
    const float a = neighbours ? x[2 * i] : x[i], b = neighbours ? x[2 * i + 1] : x[i + half];
    scratch[i] = a * cos[i] + b * sin[i];
    scratch[i + half] = b * cos[i + half] + a * sin[i + half];
  }
  memcpy(x, scratch, n * sizeof(float));
}

}  // namespace mdi
