// What is written alike for one register of every CPU.
#pragma once

namespace mdi {

// A compiler may leave out a subtraction of 0, but not an addition: -0 + 0 is 0.
INLINE void fill(float x, NativeFloats &v) { v = x - NativeFloats{}; }
INLINE void fill(int32_t x, NativeInts &v) { v = NativeInts{} + x; }
INLINE void load(const float *p, NativeFloats &v) { memcpy(&v, p, sizeof v); }
INLINE void load(const int32_t *p, NativeInts &v) { memcpy(&v, p, sizeof v); }
INLINE void store(float *p, NativeFloats v) { memcpy(p, &v, sizeof v); }
INLINE void store(int32_t *p, NativeInts v) { memcpy(p, &v, sizeof v); }

INLINE NativeFloats to_floats(NativeInts v) { return __builtin_convertvector(v, NativeFloats); }
INLINE NativeFloats as_floats(NativeInts v) { return (NativeFloats)v; }
INLINE NativeInts as_ints(NativeFloats v) { return (NativeInts)v; }

INLINE void load(const BFloat16 *p, NativeFloats &v) {
  typedef uint16_t Stored __attribute__((vector_size(sizeof(NativeFloats) / 2)));
  typedef uint32_t Bits __attribute__((vector_size(sizeof(NativeFloats))));
  Stored stored;
  memcpy(&stored, p, sizeof stored);
  v = (NativeFloats)(__builtin_convertvector(stored, Bits) << 16);
}
INLINE void load(const int8_t *p, NativeFloats &v) {
  typedef int8_t Stored __attribute__((vector_size(sizeof(NativeFloats) / 4)));
  Stored stored;
  memcpy(&stored, p, sizeof stored);
  v = to_floats(__builtin_convertvector(stored, NativeInts));
}
INLINE void store(int8_t *p, NativeInts v) {
  typedef int8_t Stored __attribute__((vector_size(sizeof(NativeInts) / 4)));
  const Stored stored = __builtin_convertvector(v, Stored);
  memcpy(p, &stored, sizeof stored);
}
INLINE void store(int16_t *p, NativeInts v) {
  typedef int16_t Stored __attribute__((vector_size(sizeof(NativeInts) / 2)));
  const Stored stored = __builtin_convertvector(v, Stored);
  memcpy(p, &stored, sizeof stored);
}

}  // namespace mdi
