// x86-64 with AVX2, FMA and F16C, with or without dot products of bytes (AVX-VNNI): sixteen lanes are two registers.
#pragma once

#include <immintrin.h>

#include "memory.hpp"

namespace mdi {

typedef float NativeFloats __attribute__((vector_size(32)));
typedef int32_t NativeInts __attribute__((vector_size(32)));

constexpr int kTileRows = 6;
constexpr int kFloatGroups = 1;
constexpr int kQueries = 4;
constexpr int kAccumulators = 11;

INLINE NativeFloats fma(NativeFloats a, NativeFloats b, NativeFloats c) {
  return (NativeFloats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}
INLINE void load(const Half *p, NativeFloats &v) {
  v = (NativeFloats)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
}
INLINE void store(Half *p, NativeFloats v) {
  _mm_storeu_si128(reinterpret_cast<__m128i *>(p), _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
}
INLINE void load(const BFloat16 *p, NativeFloats &v) {
  v = (NativeFloats)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p))), 16);
}
INLINE void load(const int8_t *p, NativeFloats &v) {
  v = (NativeFloats)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(p))));
}
// The integers fit.
INLINE __m128i narrowed(NativeInts v) {
  return _mm_packs_epi32(_mm256_castsi256_si128((__m256i)v), _mm256_extracti128_si256((__m256i)v, 1));
}
INLINE void store(int8_t *p, NativeInts v) {
  _mm_storel_epi64(reinterpret_cast<__m128i *>(p), _mm_packs_epi16(narrowed(v), narrowed(v)));
}
INLINE void store(int16_t *p, NativeInts v) { _mm_storeu_si128(reinterpret_cast<__m128i *>(p), narrowed(v)); }

#if defined(__AVXVNNI__)
#define MDI_INSTRUCTION_SET "avxvnni"
#define MDI_DOT_OF_BYTES
constexpr int kWeightOffset = 128;
INLINE NativeInts dot(NativeInts sums, NativeInts weights, NativeInts x) {
  return (NativeInts)_mm256_dpbusd_avx_epi32((__m256i)sums, (__m256i)weights, (__m256i)x);
}
#else
#define MDI_INSTRUCTION_SET "avx2"
#define MDI_DOTS_AVX2
#endif

template <class V> INLINE void keep(V &v) { asm("" : "+x"(v)); }

}  // namespace mdi

#include "lanes_native.hpp"
