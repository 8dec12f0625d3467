// Functions of lanes: exponential, hyperbolic tangent, error function, and the activations made of them.
#pragma once

#include "lanes.hpp"

namespace mdi {

constexpr float kRounding = 0x1.8p23f;  // a float near zero that this is added to becomes the nearest whole number

INLINE Floats absolute(Floats x) { return as_floats(as_ints(x) & splat(0x7fffffff)); }
INLINE Floats with_sign_of(Floats x, Floats sign) {
  return as_floats((as_ints(x) & splat(0x7fffffff)) | (as_ints(sign) & ~splat(0x7fffffff)));
}

// x * polynomial + ..., with the coefficient of the highest power first.
template <int N> INLINE Floats polynomial(Floats x, const float (&coefficients)[N]) {
  Floats y = splat(coefficients[0]);
#pragma GCC unroll 16
  for (int i = 1; i < N; i++) y = fma(y, x, splat(coefficients[i]));
  return y;
}

// Within 2 units in the last place; 0 below -87.3 and infinite above 88.3. After expf of Cephes, netlib.org/cephes.
INLINE Floats exp(Floats x) {
  const Floats shifted = fma(x, splat(0x1.715476p+0f), splat(kRounding)), n = shifted - splat(kRounding);
  Floats rest = fma(n, splat(-0.693359375f), x);  // log 2 in two parts
  rest = fma(n, splat(2.12194440e-4f), rest);
  const Floats p = polynomial(rest, {1.9875691500e-4f, 1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f,
                                     1.6666665459e-1f, 5.0000001201e-1f});
  const Floats y = fma(p, rest * rest, rest + splat(1.0f));
  const Ints power = as_ints(shifted) - splat(static_cast<int32_t>(bits_of(kRounding)));
  const Floats scaled = y * as_floats((power + splat(127)) << 23);
  const Floats bounded = select(x < splat(-87.3f), splat(0.0f), scaled);
  return select(x > splat(88.3f), splat(__builtin_inff()), bounded);
}

INLINE Floats tanh(Floats x) {
  const Floats square = x * x;
  const Floats p = polynomial(square, {-5.70498872745e-3f, 2.06390887954e-2f, -5.37397155531e-2f, 1.33314422036e-1f,
                                       -3.33332819422e-1f});
  const Floats small = fma(p * square, x, x);
  const Floats large = splat(1.0f) - splat(2.0f) / (exp(absolute(x) + absolute(x)) + splat(1.0f));
  return select(absolute(x) < splat(0.625f), small, with_sign_of(large, x));
}

// After N. Juffa, stackoverflow.com/a/35148199.
INLINE Floats erf(Floats x) {
  const Floats t = absolute(x), square = x * x;
  const Floats p = polynomial(square, {-5.96761703e-4f, 4.99119423e-3f, -2.67681349e-2f, 1.12819925e-1f,
                                       -3.76125336e-1f, 1.28379166e-1f});
  const Floats u = fma(splat(-3.88396438e-3f), t, splat(2.42546219e-2f));
  Floats q = fma(fma(splat(-1.72853470e-5f), t, splat(3.83197126e-4f)), square, u);
  q = fma(q, t, splat(-1.06777877e-1f));
  q = fma(q, t, splat(-6.34846687e-1f));
  q = fma(q, t, splat(-1.28717512e-1f));
  q = fma(q, t, -t);
  const Floats large = with_sign_of(splat(1.0f) - exp(q), x);
  return select(t > splat(0.927734375f), large, fma(p, x, x));
}

enum class Activation : int32_t { kSilu, kGelu, kGeluTanh, kRelu };

INLINE Floats silu(Floats x) { return x / (splat(1.0f) + exp(-x)); }

INLINE Floats activated(Activation activation, Floats x) {
  switch (activation) {
    case Activation::kSilu:
      return silu(x);
    case Activation::kGelu:
      return splat(0.5f) * x * (splat(1.0f) + erf(x * splat(0x1.6a09e6p-1f)));
    case Activation::kRelu:
      return select(x < splat(0.0f), splat(0.0f), x);  // NaN stays
    case Activation::kGeluTanh:  // 1 + tanh(u) = 2 / (1 + exp(-2 u))
    default: {
      const Floats u = splat(0x1.988454p-1f) * fma(splat(0.044715f) * x * x, x, x);
      return x / (splat(1.0f) + exp(-(u + u)));
    }
  }
}

}  // namespace mdi
