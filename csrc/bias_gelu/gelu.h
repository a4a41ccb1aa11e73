// The normal distribution behind exact GELU, for host and device: gelu(x) = x cdf(x), gelu'(x) = cdf(x) + x pdf(x).
//
// float: cdf(-|x|) = exp(-x^2 / 2) times a polynomial in t = 1 / (1 + 0.34 |x|), the form of Abramowitz and Stegun
// 7.1.26. Its nine coefficients are fitted in float64 to erfcx(|x| / sqrt(2)) / 2, so that the largest relative error
// is least: 3.1e-8 up to |x| = 14. The same exponential serves value and derivative, and there is no branch. bf16 on
// the host: a polynomial in |x| instead, without the division, fitted likewise up to |x| = 6. Its relative error
// is 1.6e-4 up to |x| = 2 and 2.3e-3 at 6, where cdf is 1e-9; rounding to bf16 costs up to 3.9e-3.
#pragma once

#include <cmath>

#include "common/exp2.h"
#include "common/float16.h"

namespace lgfast {

template <typename Acc>
struct Normal {
  Acc cdf, pdf;
};

constexpr float kGeluTailSlope = 0.34f;
constexpr float kMinusHalfLog2E = -0.72134752044f;  // exp(-x^2 / 2) = 2^(kMinusHalfLog2E x^2)

// tail = cdf(-|x|), bell = exp(-x^2 / 2)
LGFAST_HOST_DEVICE LGFAST_ALWAYS_INLINE Normal<float> normal_of(float x, float tail, float bell) {
  return {x < 0.0f ? tail : 1.0f - tail, 0.39894228f * bell};
}

// t = 1 / (1 + kGeluTailSlope |x|)
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
  return normal_of(x, p * t * bell, bell);
}

LGFAST_INLINE Normal<float> normal(float x) {
  const float bell = exp2_negative(x * x * kMinusHalfLog2E);
  return normal_at(x, 1.0f / (1.0f + kGeluTailSlope * std::fabs(x)), bell);
}

LGFAST_INLINE Normal<double> normal(double x) {
  return {0.5 * std::erfc(-x * 0.70710678118654752440), 0.39894228040143267794 * std::exp(-0.5 * x * x)};
}

// Chooses the cheapest form whose error is below the rounding error of T.
template <typename T, typename Acc>
LGFAST_INLINE Normal<Acc> normal_for(Acc x) {
  return normal(x);
}

template <>
LGFAST_INLINE Normal<float> normal_for<bf16>(float x) {
  const float bell = exp2_negative(x * x * kMinusHalfLog2E), size = std::fabs(x), a = size > 6.0f ? 6.0f : size;
  float p = 3.9479082e-6f;
  p = p * a - 1.0910719e-4f;
  p = p * a + 1.2954845e-3f;
  p = p * a - 8.7374765e-3f;
  p = p * a + 0.037567962f;
  p = p * a - 0.1108496f;
  p = p * a + 0.23926957f;
  p = p * a - 0.39678472f;
  p = p * a + 0.49992171f;
  return normal_of(x, p * bell, bell);
}

}  // namespace lgfast
