// Any CPU: four registers of four lanes, or whatever the compiler makes of them. Slow, and with the same bits.
#pragma once

#include <cmath>

#include "memory.hpp"

#define MDI_INSTRUCTION_SET "portable"

namespace mdi {

typedef float NativeFloats __attribute__((vector_size(16)));
typedef int32_t NativeInts __attribute__((vector_size(16)));

constexpr int kTileRows = 2;
constexpr int kFloatGroups = 1;
constexpr int kQueries = 1;
constexpr int kAccumulators = 4;

// Not inlined: its calls would fill the caches.
inline __attribute__((noinline)) NativeFloats fma(NativeFloats a, NativeFloats b, NativeFloats c) {
  for (int i = 0; i < 4; i++) c[i] = std::fma(a[i], b[i], c[i]);
  return c;
}
INLINE void load(const Half *p, NativeFloats &v) {
  for (int i = 0; i < 4; i++) v[i] = float_of(p[i]);
}
INLINE void store(Half *p, NativeFloats v) {
  for (int i = 0; i < 4; i++) p[i] = half_of(v[i]);
}
INLINE void load(const BFloat16 *p, NativeFloats &v) {
  typedef uint16_t Stored __attribute__((vector_size(8)));
  typedef uint32_t Bits __attribute__((vector_size(16)));
  Stored stored;
  memcpy(&stored, p, sizeof stored);
  v = (NativeFloats)(__builtin_convertvector(stored, Bits) << 16);
}
INLINE void load(const int8_t *p, NativeFloats &v) {
  for (int i = 0; i < 4; i++) v[i] = p[i];
}
INLINE void store(int8_t *p, NativeInts v) {
  for (int i = 0; i < 4; i++) p[i] = static_cast<int8_t>(v[i]);
}
INLINE void store(int16_t *p, NativeInts v) {
  for (int i = 0; i < 4; i++) p[i] = static_cast<int16_t>(v[i]);
}

#define MDI_DOT_OF_BYTES
constexpr int kWeightOffset = 0;
INLINE NativeInts dot(NativeInts sums, NativeInts weights, NativeInts x) {
  int8_t a[16], b[16];
  memcpy(a, &weights, 16);
  memcpy(b, &x, 16);
  for (int i = 0; i < 16; i++) sums[i / 4] += a[i] * b[i];
  return sums;
}

template <class V> INLINE void keep(V &) {}

}  // namespace mdi

#include "lanes_native.hpp"
