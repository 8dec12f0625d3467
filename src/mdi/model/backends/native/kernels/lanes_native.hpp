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

}  // namespace mdi
