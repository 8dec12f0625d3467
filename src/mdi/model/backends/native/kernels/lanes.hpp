// Sixteen lanes of floats or integers, in as many registers as the CPU needs for them: one, two or four.
//
// All that is computed here comes out with the same bits on every CPU. Integer products are exact; floats are summed in
// sixteen lanes and in one order, and where a product is added to something, `fma` rounds once, also where that has to
// be emulated. Nothing else is fused or reordered: the compiler is told so (-ffp-contract=off, no -ffast-math).
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#define INLINE inline __attribute__((always_inline))

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#include "lanes_avx512.hpp"
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include "lanes_avx2.hpp"
#elif defined(__aarch64__)
#include "lanes_neon.hpp"
#else
#include "lanes_portable.hpp"
#endif

namespace mdi {

constexpr int kLanes = 16;

// Two registers, or two pairs of them, that are used like one.
template <class V> struct Pair {
  V low, high;
};
template <class V> constexpr int lanes_of = sizeof(V) / 4;

template <class V>
using SixteenLanes =
    std::conditional_t<lanes_of<V> == 16, V, std::conditional_t<lanes_of<V> == 8, Pair<V>, Pair<Pair<V>>>>;
using Floats = SixteenLanes<NativeFloats>;
using Ints = SixteenLanes<NativeInts>;

template <class V> INLINE Pair<V> operator+(Pair<V> a, Pair<V> b) { return {a.low + b.low, a.high + b.high}; }
template <class V> INLINE Pair<V> operator-(Pair<V> a, Pair<V> b) { return {a.low - b.low, a.high - b.high}; }
template <class V> INLINE Pair<V> operator*(Pair<V> a, Pair<V> b) { return {a.low * b.low, a.high * b.high}; }
template <class V> INLINE Pair<V> operator/(Pair<V> a, Pair<V> b) { return {a.low / b.low, a.high / b.high}; }
template <class V> INLINE Pair<V> operator&(Pair<V> a, Pair<V> b) { return {a.low & b.low, a.high & b.high}; }
template <class V> INLINE Pair<V> operator|(Pair<V> a, Pair<V> b) { return {a.low | b.low, a.high | b.high}; }
template <class V> INLINE Pair<V> operator~(Pair<V> a) { return {~a.low, ~a.high}; }
template <class V> INLINE Pair<V> operator-(Pair<V> a) { return {-a.low, -a.high}; }
template <class V> INLINE Pair<V> operator<<(Pair<V> a, int n) { return {a.low << n, a.high << n}; }
template <class V> INLINE Pair<V> operator>>(Pair<V> a, int n) { return {a.low >> n, a.high >> n}; }
// Comparisons yield integers: all bits set where they hold.
template <class V> INLINE auto operator<(Pair<V> a, Pair<V> b) {
  return Pair<decltype(a.low < b.low)>{a.low < b.low, a.high < b.high};
}
template <class V> INLINE auto operator>(Pair<V> a, Pair<V> b) { return b < a; }

// Functions of one register -> the same for pairs.
template <class V> INLINE Pair<V> fma(Pair<V> a, Pair<V> b, Pair<V> c) {
  return {fma(a.low, b.low, c.low), fma(a.high, b.high, c.high)};
}
template <class V> INLINE void keep(Pair<V> &v) {
  keep(v.low);
  keep(v.high);
}
template <class V> INLINE auto to_floats(Pair<V> v) {
  return Pair<decltype(to_floats(v.low))>{to_floats(v.low), to_floats(v.high)};
}
template <class V> INLINE auto as_floats(Pair<V> v) {
  return Pair<decltype(as_floats(v.low))>{as_floats(v.low), as_floats(v.high)};
}
template <class V> INLINE auto as_ints(Pair<V> v) {
  return Pair<decltype(as_ints(v.low))>{as_ints(v.low), as_ints(v.high)};
}
template <class T, class V> INLINE void fill(T x, Pair<V> &v) {
  fill(x, v.low);
  fill(x, v.high);
}
template <class T, class V> INLINE void load(const T *p, Pair<V> &v) {
  load(p, v.low);
  load(p + lanes_of<V>, v.high);
}
template <class T, class V> INLINE void store(T *p, Pair<V> v) {
  store(p, v.low);
  store(p + lanes_of<V>, v.high);
}

INLINE Floats splat(float x) {
  Floats v;
  fill(x, v);
  return v;
}
INLINE Ints splat(int32_t x) {
  Ints v;
  fill(x, v);
  return v;
}

// Sixteen numbers of memory as floats. `Half` and `BFloat16` are halves of a float's size.
template <class T> INLINE Floats load(const T *p) {
  Floats v;
  load(p, v);
  return v;
}
INLINE Ints load_ints(const uint8_t *p) {
  Ints v;
  load(reinterpret_cast<const int32_t *>(p), v);
  return v;
}
// The first `n` numbers, zeros after them; nothing else is read or written.
INLINE Floats load_first(const float *p, int n) {
  if (n == kLanes) return load(p);  // most often, and a copy of a size that is not known takes as long as ten loads
  float padded[kLanes] = {};
  memcpy(padded, p, n * sizeof(float));
  return load(padded);
}
INLINE void store_first(float *p, Floats v, int n) {
  if (n == kLanes) return store(p, v);
  float all[kLanes];
  store(all, v);
  memcpy(p, all, n * sizeof(float));
}

INLINE Ints lane_numbers() {
  static constexpr int32_t numbers[kLanes] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  Ints v;
  load(numbers, v);
  return v;
}
INLINE Floats select(Ints mask, Floats yes, Floats no) {
  return as_floats((mask & as_ints(yes)) | (~mask & as_ints(no)));
}
INLINE Ints select(Ints mask, Ints yes, Ints no) { return (mask & yes) | (~mask & no); }
INLINE Floats max(Floats a, Floats b) { return select(a > b, a, b); }
INLINE Ints max(Ints a, Ints b) { return select(a > b, a, b); }

// The sum of all lanes, halving their number each time.
INLINE float sum(Floats v) {
  float lane[kLanes];
  store(lane, v);
  for (int n = kLanes / 2; n > 0; n /= 2)
    for (int i = 0; i < n; i++) lane[i] += lane[i + n];
  return lane[0];
}
INLINE float largest(Floats v) {
  float lane[kLanes];
  store(lane, v);
  for (int n = kLanes / 2; n > 0; n /= 2)
    for (int i = 0; i < n; i++) lane[i] = lane[i] > lane[i + n] ? lane[i] : lane[i + n];
  return lane[0];
}

}  // namespace mdi
