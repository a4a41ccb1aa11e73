// 2^y for CPU kernels, without a branch, in a form that compilers turn into vector code.
#pragma once

#include <cmath>

#include "common/host_device.h"

namespace lgfast {

// Returns 2^y for y <= 0. A y above 0 by a rounding error is harmless. Results below 2^-126 are 0; NaN gives NaN.
LGFAST_INLINE float exp2_negative(float y) {
  constexpr float kLeast = -126.0f;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves the rounded integer in the low bits
  const float clamped = y < kLeast ? kLeast : y, shifted = clamped + kRound;
  const float f = clamped - (shifted - kRound);  // [-0.5, 0.5]
  float p = 1.5353362e-4f;                       // 2^f within 2e-9, exact at 0
  p = p * f + 1.3398875e-3f;
  p = p * f + 9.6184369e-3f;
  p = p * f + 5.5503324e-2f;
  p = p * f + 0.24022648f;
  p = p * f + 0.69314718f;
  p = p * f + 1.0f;
  const float power = bit_cast<float>((bit_cast<uint32_t>(shifted) - bit_cast<uint32_t>(kRound) + 127u) << 23);
  return y < kLeast ? 0.0f : p * power;
}

LGFAST_INLINE double exp2_negative(double y) { return std::exp2(y); }

}  // namespace lgfast
