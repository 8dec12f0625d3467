// Attention of a message's rows over keys and values in slots.
//
// D head size, G kv heads. A slot holds, for each kv head, keys in blocks of 16 positions, [context / 16][D][16], so that
// positions are lanes when scores are summed over D, and values [context][D'], D' a multiple of 16, so that
// elements are lanes when values are summed over positions.
#pragma once

#include <algorithm>
#include <cmath>

#include "functions.hpp"

namespace mdi {

inline int lane_multiple(int n) { return (n + kLanes - 1) / kLanes * kLanes; }

// Keys and values of one layer. `T` is what they are stored as: Half or float.
template <class T> struct Cache {
  T *keys, *values;
  int n_heads, head_size, context;  // context: a multiple of 16

  int value_size() const { return lane_multiple(head_size); }
  T *keys_of(int slot, int head) const { return keys + offset(slot, head) * head_size; }
  T *values_of(int slot, int head) const { return values + offset(slot, head) * value_size(); }

  void put(int slot, int head, int position, const float *key, const float *value) const {
    T *column = keys_of(slot, head) + static_cast<int64_t>(position / kLanes) * kLanes * head_size + position % kLanes;
    T *row = values_of(slot, head) + static_cast<int64_t>(position) * value_size();
    for (int d = 0; d < head_size; d += kLanes) {
      const int n = std::min(kLanes, head_size - d);
      T stored[kLanes];
      store(stored, load_first(key + d, n));
      for (int i = 0; i < n; i++) column[(d + i) * kLanes] = stored[i];
      store(row + d, load_first(value + d, n));
    }
  }
  // The first `n` positions of one slot, to another.
  void copy(int source, int target, int n) const {
    for (int head = 0; head < n_heads; head++) {
      memcpy(keys_of(target, head), keys_of(source, head), sizeof(T) * lane_multiple(n) * head_size);
      memcpy(values_of(target, head), values_of(source, head), sizeof(T) * n * value_size());
    }
  }

 private:
  int64_t offset(int slot, int head) const { return (static_cast<int64_t>(slot) * n_heads + head) * context; }
};

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
INLINE void score_blocks(const T *keys, int head_size, const float *q, float *scores, int stride) {
  Floats sums[Q][B];
  for (int j = 0; j < Q; j++)
    for (int b = 0; b < B; b++) sums[j][b] = splat(0.0f);
  const int64_t block = static_cast<int64_t>(head_size) * kLanes;
#pragma GCC unroll 2
  for (int d = 0; d < head_size; d++, keys += kLanes)
#pragma GCC unroll 4
    for (int b = 0; b < B; b++) {
      const Floats k = load(keys + b * block);
      __builtin_prefetch(keys + (b + B) * block);
#pragma GCC unroll 8
      for (int j = 0; j < Q; j++) {
        sums[j][b] = fma(k, splat(q[j * head_size + d]), sums[j][b]);
        keep(sums[j][b]);
      }
    }
  for (int j = 0; j < Q; j++)
    for (int b = 0; b < B; b++) store(scores + j * stride + b * kLanes, sums[j][b]);
}

template <int Q, class T>
void score(const T *keys, int head_size, int n_blocks, const float *q, float *scores, int stride) {
  constexpr int B = side_by_side(Q);
  int b = 0;
  for (; b + B <= n_blocks; b += B)
    score_blocks<Q, B>(keys + static_cast<int64_t>(b) * kLanes * head_size, head_size, q, scores + b * kLanes, stride);
  for (; b < n_blocks; b++)
    score_blocks<Q, 1>(keys + static_cast<int64_t>(b) * kLanes * head_size, head_size, q, scores + b * kLanes, stride);
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

// Values of `n` positions, summed with the weights of Q queries: 16 B elements of each.
template <int Q, int B, class T>
INLINE void sum_values(const T *values, int size, int n, const float *weights, int stride, float *y) {
  Floats sums[Q][B];
  for (int j = 0; j < Q; j++)
    for (int b = 0; b < B; b++) sums[j][b] = splat(0.0f);
  const T *row = values;
#pragma GCC unroll 2
  for (int t = 0; t < n; t++, row += size) {
    for (int b = 0; b < B; b++) __builtin_prefetch(row + 16 * static_cast<int64_t>(size) + b * kLanes);
#pragma GCC unroll 4
    for (int b = 0; b < B; b++) {
      const Floats v = load(row + b * kLanes);
#pragma GCC unroll 8
      for (int j = 0; j < Q; j++) {
        sums[j][b] = fma(v, splat(weights[j * stride + t]), sums[j][b]);
        keep(sums[j][b]);
      }
    }
  }
  for (int j = 0; j < Q; j++)
    for (int b = 0; b < B; b++) store(y + j * size + b * kLanes, sums[j][b]);
}

template <int Q, class T>
void sum_all_values(const T *values, int size, int n, const float *weights, int stride, float *y) {
  constexpr int B = side_by_side(Q);
  int i = 0;
  for (; i + B * kLanes <= size; i += B * kLanes) sum_values<Q, B>(values + i, size, n, weights, stride, y + i);
  for (; i < size; i += kLanes) sum_values<Q, 1>(values + i, size, n, weights, stride, y + i);
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
  const T *keys = cache.keys_of(slot, head) + static_cast<int64_t>(begin) * cache.head_size;
  const T *values = cache.values_of(slot, head) + static_cast<int64_t>(first) * size;
  score<Q>(keys, cache.head_size, n_blocks, memory.queries, memory.scores, cache.context);
  float inverse[Q];
  for (int j = 0; j < Q; j++) inverse[j] = weigh(memory.scores + j * cache.context, begin, n_blocks, sights[j], scaling);
  sum_all_values<Q>(values, size, stop - first, memory.scores + (first - begin), cache.context, memory.results);
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
