// x86-64 with AVX-512 and its dot products of bytes (VNNI): sixteen lanes are one register.
#pragma once

#include <immintrin.h>

#include "memory.hpp"

#define MDI_INSTRUCTION_SET "avx512vnni"

namespace mdi {

typedef float NativeFloats __attribute__((vector_size(64)));
typedef int32_t NativeInts __attribute__((vector_size(64)));

constexpr int kTileRows = 8;     // rows that pass one group of weights together
constexpr int kFloatGroups = 2;  // groups of float weights that they pass at once
constexpr int kQueries = 8;      // queries that pass one kv head together
constexpr int kAccumulators = 20;  // registers for sums, beside what they are made of

INLINE NativeFloats fma(NativeFloats a, NativeFloats b, NativeFloats c) {
  return (NativeFloats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}
INLINE void load(const Half *p, NativeFloats &v) {
  v = (NativeFloats)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)));
}
INLINE void store(Half *p, NativeFloats v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
}
INLINE void load(const BFloat16 *p, NativeFloats &v) {
  v = (NativeFloats)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p))), 16);
}
INLINE void load(const int8_t *p, NativeFloats &v) {
  v = (NativeFloats)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p))));
}
INLINE void store(int8_t *p, NativeInts v) {
  _mm_storeu_si128(reinterpret_cast<__m128i *>(p), _mm512_cvtepi32_epi8((__m512i)v));
}
INLINE void store(int16_t *p, NativeInts v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), _mm512_cvtepi32_epi16((__m512i)v));
}

#define MDI_DOT_OF_BYTES
constexpr int kWeightOffset = 128;  // the weights of a dot product are unsigned, the rows signed
INLINE NativeInts dot(NativeInts sums, NativeInts weights, NativeInts x) {
  return (NativeInts)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)weights, (__m512i)x);
}

// Holds a sum in its register: GCC would put off the additions of all rows but one, and spill their terms.
template <class V> INLINE void keep(V &v) { asm("" : "+v"(v)); }

}  // namespace mdi

#include "lanes_native.hpp"
