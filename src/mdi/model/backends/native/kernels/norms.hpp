// Normalizations of rows.
#pragma once

#include <cmath>

#include "lanes.hpp"

namespace mdi {

struct Norm {
  enum class Kind : int32_t { kNone, kRms, kLayer };
  Kind kind;
  float epsilon;
  const float *weight, *bias;  // null: all ones, all zeros
};

// Calls `f(offset, n)` for each sixteen of `size` elements; `n` of them are there.
template <class F> INLINE void for_lanes(int size, F f) {
  int i = 0;
  for (; i + kLanes <= size; i += kLanes) f(i, kLanes);
  if (i < size) f(i, size - i);
}

// Mean of x - `center`, squared or not.
template <bool kSquared> inline float mean(const float *x, int size, float center) {
  Floats sums = splat(0.0f);
  for_lanes(size, [&](int i, int n) {
    Floats v = load_first(x + i, n) - splat(center);
    if (n < kLanes) v = select(lane_numbers() < splat(n), v, splat(0.0f));
    sums = kSquared ? fma(v, v, sums) : sums + v;
  });
  return sum(sums) / static_cast<float>(size);
}

// y = (x - center) / deviation * weight + bias; for root mean squares the center is 0. `y` may be `x`.
inline void normalize(const Norm &norm, const float *x, int size, float *y) {
  const float center = norm.kind == Norm::Kind::kLayer ? mean<false>(x, size, 0) : 0;
  const float factor = 1 / std::sqrt(mean<true>(x, size, center) + norm.epsilon);
  for_lanes(size, [&](int i, int n) {
    Floats v = (load_first(x + i, n) - splat(center)) * splat(factor);
    if (norm.weight) v = v * load_first(norm.weight + i, n);
    if (norm.bias) v = v + load_first(norm.bias + i, n);
    store_first(y + i, v, n);
  });
}

}  // namespace mdi
