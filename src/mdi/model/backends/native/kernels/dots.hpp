// Exact products of integers: 16 outputs x a few inputs of weights with the same inputs of several rows.
//
// A `Dot` multiplies one step of a block, `kStepBytes` of weights with `kInputs` of each row. `position` says which of those
// bytes holds the weight of an output and an input, and of 4 bits `is_high` which half. `kRows` rows share their sums. Rows lie
// `kBlock` values apart.
#pragma once

#include "lanes.hpp"

namespace mdi {

constexpr int kBlock = 32;  // inputs that share a scale, of weights and of rows

#if defined(MDI_PRODUCT_OF_BYTE_MATRICES)

// The CPU multiplies matrices: two outputs with two rows, of eight inputs each.
struct DotOfMatrices {
  using Value = int8_t;  // of a row
  struct Sums {
    NativeInts pairs[kLanes / 2];  // of outputs: [output][row]
  };
  static constexpr int kRows = 2;
  static constexpr int kInputs = 8;
  static constexpr int kOffset = 0;

  static INLINE Ints total(const Sums &sums, int row) {
    const NativeInts(&p)[kLanes / 2] = sums.pairs;
    return {{of_row(row, p[0], p[1]), of_row(row, p[2], p[3])}, {of_row(row, p[4], p[5]), of_row(row, p[6], p[7])}};
  }

 protected:
  template <int R> static constexpr int kSums = (R + 1) / 2;

  // The next inputs of all rows; the last one is its own neighbour where their number is odd.
  template <int R> static INLINE void load_rows(const Value *x, NativeInts (&rows)[kSums<R>]) {
    for (int i = 0; i < kSums<R>; i++) {
      const Value *row = x + 2 * i * kBlock;
      rows[i] = eight_inputs(row, 2 * i + 1 < R ? row + kBlock : row);
    }
  }
  template <int N> static INLINE void add_pair(Sums (&sums)[N], int pair, NativeInts weights, const NativeInts (&rows)[N]) {
#pragma GCC unroll 8
    for (int i = 0; i < N; i++) {
      sums[i].pairs[pair] = multiply_matrices(sums[i].pairs[pair], weights, rows[i]);
      keep(sums[i].pairs[pair]);
    }
  }
  static INLINE NativeInts load_pair(const uint8_t *weights, int pair) {
    NativeInts w;
    load(reinterpret_cast<const int32_t *>(weights + pair * sizeof w), w);
    return w;
  }
};

struct Dot8 : DotOfMatrices {
  static constexpr int kStepBytes = 128;
  static constexpr int position(int output, int input) { return output * 8 + input; }

  template <int R> static INLINE void add(Sums (&sums)[kSums<R>], const uint8_t *weights, const Value *x) {
    NativeInts rows[kSums<R>];
    load_rows<R>(x, rows);
#pragma GCC unroll 8
    for (int pair = 0; pair < 8; pair++) add_pair(sums, pair, load_pair(weights, pair), rows);
  }
};

struct Dot4 : DotOfMatrices {
  static constexpr int kStepBytes = 64;
  static constexpr int position(int output, int input) { return output % 8 * 8 + input; }
  static constexpr bool is_high(int output, int) { return output >= 8; }

  template <int R> static INLINE void add(Sums (&sums)[kSums<R>], const uint8_t *weights, const Value *x) {
    NativeInts rows[kSums<R>], mask;
    load_rows<R>(x, rows);
    fill(0x0f0f0f0f, mask);
#pragma GCC unroll 4
    for (int pair = 0; pair < 4; pair++) {
      const NativeInts w = load_pair(weights, pair);
      add_pair(sums, pair, w & mask, rows);
      add_pair(sums, pair + 4, (w >> 4) & mask, rows);
    }
  }
};

#elif defined(MDI_DOT_OF_BYTES)

// The CPU adds products of four neighbouring bytes to a 32-bit sum.
template <class V> INLINE Pair<V> dot(Pair<V> sums, Pair<V> weights, Pair<V> x) {
  return {dot(sums.low, weights.low, x.low), dot(sums.high, weights.high, x.high)};
}
INLINE Ints four_inputs(const int8_t *x) {
  int32_t bytes;
  memcpy(&bytes, x, sizeof bytes);
  return splat(bytes);
}

struct Dot8 {
  using Value = int8_t;  // of a row
  using Sums = Ints;
  static constexpr int kRows = 1;
  static constexpr int kInputs = 4, kStepBytes = 64;
  static constexpr int kOffset = kWeightOffset;  // added to weights as they are stored
  static constexpr int position(int output, int input) { return output * 4 + input; }
  static INLINE Ints total(Sums sums, int) { return sums; }

  template <int R> static INLINE void add(Sums (&sums)[R], const uint8_t *weights, const Value *x) {
    const Ints w = load_ints(weights);
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
      sums[r] = dot(sums[r], w, four_inputs(x + r * kBlock));
      keep(sums[r]);
    }
  }
};

struct Dot4 {
  using Value = int8_t;
  using Sums = Ints;
  static constexpr int kRows = 1;
  static constexpr int kInputs = 8, kStepBytes = 64;
  static constexpr int position(int output, int input) { return output * 4 + input % 4; }
  static constexpr bool is_high(int, int input) { return input >= 4; }
  static INLINE Ints total(Sums sums, int) { return sums; }

  template <int R> static INLINE void add(Sums (&sums)[R], const uint8_t *weights, const Value *x) {
    const Ints w = load_ints(weights), low = w & splat(0x0f0f0f0f), high = (w >> 4) & splat(0x0f0f0f0f);
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
      sums[r] = dot(sums[r], low, four_inputs(x + r * kBlock));
      sums[r] = dot(sums[r], high, four_inputs(x + r * kBlock + 4));
      keep(sums[r]);
    }
  }
};

#elif defined(MDI_DOTS_AVX2)

// AVX2 multiplies bytes in 16 bits, which saturate for two products of 8 bits each. So 8-bit weights are widened, and
// multiplied with rows of 16 bits, two inputs at a time.
struct Dot8 {
  using Value = int16_t;
  using Sums = Ints;
  static constexpr int kRows = 1;
  static constexpr int kInputs = 4, kStepBytes = 64;
  static constexpr int kOffset = 0;
  static constexpr int position(int output, int input) { return input / 2 * 32 + output * 2 + input % 2; }
  static INLINE Ints total(Sums sums, int) { return sums; }

  template <int R> static INLINE void add(Sums (&sums)[R], const uint8_t *weights, const Value *x) {
#pragma GCC unroll 2
    for (int pair = 0; pair < 2; pair++) {
      const __m256i low = widened(weights + pair * 32), high = widened(weights + pair * 32 + 16);
#pragma GCC unroll 16
      for (int r = 0; r < R; r++) {
        int32_t two;
        memcpy(&two, x + r * kBlock + pair * 2, sizeof two);
        const __m256i inputs = _mm256_set1_epi32(two);
        sums[r].low += (NativeInts)_mm256_madd_epi16(low, inputs);
        sums[r].high += (NativeInts)_mm256_madd_epi16(high, inputs);
        keep(sums[r]);
      }
    }
  }
  static INLINE __m256i widened(const uint8_t *p) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
  }
};

// Products of 4-bit weights fit: the sum of a block in 16 bits is at most 8 * 2 * 15 * 127 = 30,480.
struct Dot4 {
  typedef int16_t Shorts __attribute__((vector_size(32)));
  using Value = int8_t;
  using Sums = Pair<Shorts>;
  static constexpr int kRows = 1;
  static constexpr int kInputs = 8, kStepBytes = 64;
  static constexpr int position(int output, int input) { return output * 4 + input % 4; }
  static constexpr bool is_high(int, int input) { return input >= 4; }
  static INLINE Ints total(Sums sums, int) { return {joined(sums.low), joined(sums.high)}; }

  template <int R> static INLINE void add(Sums (&sums)[R], const uint8_t *weights, const Value *x) {
    const Ints w = load_ints(weights), low = w & splat(0x0f0f0f0f), high = (w >> 4) & splat(0x0f0f0f0f);
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
      sums[r] = added(added(sums[r], low, x + r * kBlock), high, x + r * kBlock + 4);
      keep(sums[r]);
    }
  }
  static INLINE Sums added(Sums sums, Ints weights, const Value *x) {
    int32_t four;
    memcpy(&four, x, sizeof four);
    const __m256i inputs = _mm256_set1_epi32(four);
    return {sums.low + (Shorts)_mm256_maddubs_epi16((__m256i)weights.low, inputs),
            sums.high + (Shorts)_mm256_maddubs_epi16((__m256i)weights.high, inputs)};
  }
  static INLINE NativeInts joined(Shorts pairs) {
    return (NativeInts)_mm256_madd_epi16((__m256i)pairs, _mm256_set1_epi16(1));
  }
};

#endif

}  // namespace mdi
