// AArch64, with or without products of matrices of bytes (i8mm), or dot products of bytes: sixteen lanes are four registers.
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
INLINE void load(const BFloat16 *p, NativeFloats &v) {
  v = (NativeFloats)vshll_n_u16(vld1_u16(reinterpret_cast<const uint16_t *>(p)), 16);
}
INLINE void load(const int8_t *p, NativeFloats &v) {
  int32_t four;
  memcpy(&four, p, sizeof four);
  v = (NativeFloats)vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four))))));
}
INLINE void store(int8_t *p, NativeInts v) {
  const int16x4_t narrow = vmovn_s32((int32x4_t)v);
  const int32_t four = vget_lane_s32(vreinterpret_s32_s8(vmovn_s16(vcombine_s16(narrow, narrow))), 0);
  memcpy(p, &four, sizeof four);
}
INLINE void store(int16_t *p, NativeInts v) { vst1_s16(p, vmovn_s32((int32x4_t)v)); }

#if defined(__ARM_FEATURE_MATMUL_INT8)
#define MDI_INSTRUCTION_SET "neon-i8mm"
#define MDI_PRODUCT_OF_BYTE_MATRICES
// Adds products of two outputs with two rows, of eight inputs each: [output][row].
INLINE NativeInts multiply_matrices(NativeInts sums, NativeInts weights, NativeInts rows) {
  return (NativeInts)vmmlaq_s32((int32x4_t)sums, (int8x16_t)weights, (int8x16_t)rows);
}
INLINE NativeInts eight_inputs(const int8_t *row, const int8_t *next_row) {
  return (NativeInts)vcombine_s8(vld1_s8(row), vld1_s8(next_row));
}
// Of four outputs, those of the first or the second row.
INLINE NativeInts of_row(int row, NativeInts low, NativeInts high) {
  const int32x4_t a = (int32x4_t)low, b = (int32x4_t)high;
  return (NativeInts)(row == 0 ? vuzp1q_s32(a, b) : vuzp2q_s32(a, b));
}
#else
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
#endif

template <class V> INLINE void keep(V &v) { asm("" : "+w"(v)); }

}  // namespace mdi

#include "lanes_native.hpp"
