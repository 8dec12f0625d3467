// AArch64, with or without dot products of bytes: sixteen lanes are four registers.
#pragma once

#include <arm_neon.h>

#include "memory.hpp"

namespace mdi {

typedef float NativeFloats __attribute__((vector_size(16)));
typedef int32_t NativeInts __attribute__((vector_size(16)));

constexpr int kTileRows = 4;
constexpr int kFloatGroups = 1;
constexpr int kQueries = 4;
constexpr int kAccumulators = 20;

INLINE NativeFloats fma(NativeFloats a, NativeFloats b, NativeFloats c) {
  return (NativeFloats)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}
INLINE void load(const Half *p, NativeFloats &v) {
  uint16x4_t bits;
  memcpy(&bits, p, sizeof bits);
  v = (NativeFloats)vcvt_f32_f16(vreinterpret_f16_u16(bits));
}
INLINE void store(Half *p, NativeFloats v) {
  const uint16x4_t bits = vreinterpret_u16_f16(vcvt_f16_f32((float32x4_t)v));
  memcpy(p, &bits, sizeof bits);
}

#define MDI_DOT_OF_BYTES
constexpr int kWeightOffset = 0;
INLINE NativeInts dot(NativeInts sums, NativeInts weights, NativeInts x) {
  const int8x16_t a = (int8x16_t)weights, b = (int8x16_t)x;
#if defined(__ARM_FEATURE_DOTPROD)
#define MDI_INSTRUCTION_SET "neon-dotprod"
  return (NativeInts)vdotq_s32((int32x4_t)sums, a, b);
#else
#define MDI_INSTRUCTION_SET "neon"
  const int32x4_t low = vpaddlq_s16(vmull_s8(vget_low_s8(a), vget_low_s8(b)));
  const int32x4_t high = vpaddlq_s16(vmull_high_s8(a, b));
  return sums + (NativeInts)vpaddq_s32(low, high);
#endif
}

template <class V> INLINE void keep(V &v) { asm("" : "+w"(v)); }

}  // namespace mdi

#include "lanes_native.hpp"
