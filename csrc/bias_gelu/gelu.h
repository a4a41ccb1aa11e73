// The normal distribution behind exact GELU, for host and device: gelu(x) = x cdf(x), gelu'(x) = cdf(x) + x pdf(x).
//
// float: cdf(-|x|) = exp(-x^2 / 2) times a polynomial in t = 1 / (1 + 0.34 |x|), the form of Abramowitz and Stegun
// 7.1.26, with nine coefficients fitted to erfcx(|x| / sqrt(2)) / 2 in float64 for the least largest relative
// error, 3.1e-8 up to |x| = 14. So the same exponential serves value and derivative, and no branch is left.
#pragma once

#include <cmath>

#include "common/float16.h"
#include "common/vectorize.h"

namespace lgfast {

template <typename Acc>
struct Normal {
  Acc cdf, pdf;
};

constexpr float kGeluTailSlope = 0.34f;
constexpr float kMinusHalfLog2E = -0.72134752044f;  // exp(-x^2 / 2) = 2^(kMinusHalfLog2E x^2)

// t = 1 / (1 + kGeluTailSlope |x|), bell = exp(-x^2 / 2)
LGFAST_HOST_DEVICE LGFAST_ALWAYS_INLINE Normal<float> normal_at(float x, float t, float bell) {
  float p = -0.026120592f;
  p = p * t + 0.13949999f;
  p = p * t - 0.27313363f;
  p = p * t + 0.20218353f;
  p = p * t - 0.044718953f;
  p = p * t + 0.11535934f;
  p = p * t + 0.11519762f;
  p = p * t + 0.1361122f;
  p = p * t + 0.1356205f;
  const float tail = p * t * bell;
  return {x < 0.0f ? tail : 1.0f - tail, 0.39894228f * bell};
}

// 2^y for y <= 0, in a form that compilers vectorise; 0 below 2^-126.
LGFAST_INLINE float exp2_negative(float y) {
  constexpr float kLeast = -126.0f;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves the rounded integer in the low bits
  const float clamped = y > kLeast ? y : kLeast, shifted = clamped + kRound;
  const float f = clamped - (shifted - kRound);  // [-0.5, 0.5]
  float p = 1.5252734e-5f;                       // Taylor series of 2^f
  p = p * f + 1.5403530e-4f;
  p = p * f + 1.3333558e-3f;
  p = p * f + 9.6181291e-3f;
  p = p * f + 5.5504109e-2f;
  p = p * f + 0.24022651f;
  p = p * f + 0.69314718f;
  p = p * f + 1.0f;
  const float power = float_from_bits((float_bits(shifted) - float_bits(kRound) + 127u) << 23);
  return y > kLeast ? p * power : 0.0f;
}

LGFAST_INLINE Normal<float> normal(float x) {
  const float bell = exp2_negative(x * x * kMinusHalfLog2E);
  return normal_at(x, 1.0f / (1.0f + kGeluTailSlope * std::fabs(x)), bell);
}

LGFAST_INLINE Normal<double> normal(double x) {
  return {0.5 * std::erfc(-x * 0.70710678118654752440), 0.39894228040143267794 * std::exp(-0.5 * x * x)};
}

}  // namespace lgfast
