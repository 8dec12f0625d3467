// Numbers of 16 bits as they lie in memory.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace mdi {

enum class Half : uint16_t {};      // IEEE binary16
enum class BFloat16 : uint16_t {};  // the upper half of a float

inline float float_with(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}
inline uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

inline float float_of(Half half) {
  const uint32_t bits = static_cast<uint32_t>(half), sign = (bits & 0x8000) << 16;
  const uint32_t exponent = bits >> 10 & 31, mantissa = bits & 1023;
  if (exponent == 0) return float_with(sign | bits_of(mantissa * 0x1p-24f));  // subnormal, or zero
  if (exponent == 31) return float_with(sign | 0x7f800000 | mantissa << 13);
  return float_with(sign | (exponent + 112) << 23 | mantissa << 13);
}

// The nearest half; of two, the one that is even.
inline Half half_of(float x) {
  const uint32_t sign = bits_of(x) >> 16 & 0x8000;
  uint32_t bits = bits_of(x) & 0x7fffffff;
  if (bits > 0x7f800000) return static_cast<Half>(sign | 0x7e00 | (bits >> 13 & 0x3ff));  // not a number
  if (bits >= 0x477ff000) return static_cast<Half>(sign | 0x7c00);                        // rounds to infinity
  if (bits < 0x38800000)  // subnormal: the addition rounds to multiples of 2^-24
    return static_cast<Half>(sign | (bits_of(float_with(bits) + 0.5f) - bits_of(0.5f)));
  bits += 0xfff + (bits >> 13 & 1);
  return static_cast<Half>(sign | (bits - 0x38000000) >> 13);
}

inline float float_of(BFloat16 x) { return float_with(static_cast<uint32_t>(x) << 16); }
inline float float_of(float x) { return x; }

}  // namespace mdi
