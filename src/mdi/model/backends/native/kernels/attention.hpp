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
INLINE void score_blocks(const Keys<T> &keys, int head_size, const float *q, float *scores, int stride) {
  Floats sums[Q][B];
  for (int j = 0; j < Q; j++)
    for (int b = 0; b < B; b++) sums[j][b] = splat(0.0f);
  for (int first = 0; first < head_size; first += kBlock) {
    typename Keys<T>::Scale scales[B];
    for (int b = 0; b < B; b++) scales[b] = keys.scale(b, first);
    const int stop = std::min(first + kBlock, head_size);
#pragma GCC unroll 2
    for (int d = first; d < stop; d++)
#pragma GCC unroll 4
      for (int b = 0; b < B; b++) {
        const Floats k = keys.load(b, d, scales[b]);
        __builtin_prefetch(keys.at(b + B, d));
#pragma GCC unroll 8
        for (int j = 0; j < Q; j++) {
          sums[j][b] = fma(k, splat(q[j * head_size + d]), sums[j][b]);
          keep(sums[j][b]);
        }
      }
  }
  for (int j = 0; j < Q; j++)
    for (int b = 0; b < B; b++) store(scores + j * stride + b * kLanes, sums[j][b]);
}

template <int Q, class T>
void score(const Keys<T> &keys, int head_size, int n_blocks, const float *q, float *scores, int stride) {
  constexpr int B = side_by_side(Q);
  int b = 0;
  for (; b + B <= n_blocks; b += B) score_blocks<Q, B>(keys.from(b), head_size, q, scores + b * kLanes, stride);
  for (; b < n_blocks; b++) score_blocks<Q, 1>(keys.from(b), head_size, q, scores + b * kLanes, stride);
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

// Values of `n` positions, summed with the weights of Q queries: 16 B elements of each, from `first` on.
template <int Q, int B, class T>
INLINE void sum_values(const Values<T> &values, int first, int n, const float *weights, int stride, float *y, int size) {
  Floats sums[Q][B];
  for (int j = 0; j < Q; j++)
    for (int b = 0; b < B; b++) sums[j][b] = splat(0.0f);
#pragma GCC unroll 2
  for (int t = 0; t < n; t++) {
    for (int b = 0; b < B; b++) __builtin_prefetch(values.at(t + 16, first + b * kLanes));
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

// All elements of the values of `n` positions.
template <int Q, class T>
void sum_all_values(const Values<T> &values, int size, int n, const float *weights, int stride, float *y) {
  constexpr int B = side_by_side(Q);
  int i = 0;
  for (; i + B * kLanes <= size; i += B * kLanes) sum_values<Q, B>(values, i, n, weights, stride, y, size);
  for (; i < size; i += kLanes) sum_values<Q, 1>(values, i, n, weights, stride, y, size);
}

// Memory of one thread.
struct AttentionMemory {
  float *queries;  // [kQueries][D]
  float *scores;   // [kQueries][context]
  float *results;  // [kQueries][D']
};

// Q queries of one kv head of a slot -> `memory.results`. A position that only some of them see has weight zero for the others.
template <int Q, class T>
void attend(const Cache<T> &cache, int slot, int head, const Sight *sights, const Scaling &scaling, const AttentionMemory &memory) {
  int first = sights[0].first, stop = sights[0].stop;
  for (int j = 1; j < Q; j++) first = std::min(first, sights[j].first), stop = std::max(stop, sights[j].stop);
  const int begin = first / kLanes * kLanes, n_blocks = (stop - begin + kLanes - 1) / kLanes, size = cache.value_size();
  score<Q>(cache.keys_of(slot, head).from(begin / kLanes), cache.head_size, n_blocks, memory.queries, memory.scores, cache.context);
  float inverse[Q];
  for (int j = 0; j < Q; j++) inverse[j] = weigh(memory.scores + j * cache.context, begin, n_blocks, sights[j], scaling);
  sum_all_values<Q>(cache.values_of(slot, head).from(first), size, stop - first, memory.scores + (first - begin), cache.context, memory.results);
  for (int j = 0; j < Q; j++)
    for (int i = 0; i < size; i += kLanes) {
      float *y = memory.results + j * size + i;
      store(y, load(y) * splat(inverse[j]));
    }
}

template <int Q, class T>
void attend_up_to(int n, const Cache<T> &cache, int slot, int head, const Sight *sights, const Scaling &scaling,
                  const AttentionMemory &memory) {
  if constexpr (Q > 1)
    if (n < Q) return attend_up_to<Q - 1>(n, cache, slot, head, sights, scaling, memory);
  attend<Q>(cache, slot, head, sights, scaling, memory);
}

// Rotary embedding of one head (arXiv 2104.09864): element i turns with element i + n / 2, or neighbours with each other,
// which then leave in the order of the first kind. `sin` is negative for the first half.
inline void rotate(float *x, const float *cos, const float *sin, int n, bool neighbours, float *scratch) {
  const int half = n / 2;
  for (int i = 0; i < half; i++) {
    const float a = neighbours ? x[2 * i] : x[i], b = neighbours ? x[2 * i + 1] : x[i + half];
    scratch[i] = a * cos[i] + b * sin[i];
    scratch[i + half] = b * cos[i + half] + a * sin[i + half];
  }
  memcpy(x, scratch, n * sizeof(float));
}

}  // namespace mdi
