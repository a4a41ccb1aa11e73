// Normal noise of an erased pixel, for host and device: one Philox block per pixel, two Box-Muller pairs, one deviate
// unused. Logarithm, sine and cosine are polynomials, so that the loop over pixels vectorises and every device draws
// the same noise; absolute error below 2e-6.
#pragma once

#include "common/philox.h"

namespace lgfast {

// Natural logarithm of a positive normal float: exponent and mantissa in [sqrt(1/2), sqrt(2)), then the series of
// 2 atanh((m - 1) / (m + 1)).
LGFAST_HOST_DEVICE float series_log(float x) {
  const uint32_t shifted = bit_cast<uint32_t>(x) - 0x3f3504f3u;  // sqrt(1/2)
  const int exponent = int(shifted) >> 23;
  const float mantissa = bit_cast<float>((shifted & 0x007fffffu) + 0x3f3504f3u);
  const float s = (mantissa - 1.0f) / (mantissa + 1.0f);
  const float s2 = s * s;
  const float series = 2.0f + s2 * (0.66666667f + s2 * (0.4f + s2 * (0.28571429f + s2 * 0.22222222f)));
  return s * series + float(exponent) * 0.69314718f;
}

struct SineCosine {
  float sine, cosine;
};

// Sine and cosine of the angle 2 pi bits / 2^32, by the nearest quadrant and Taylor series within +-pi/4 of it.
LGFAST_HOST_DEVICE SineCosine sine_cosine_turn(uint32_t bits) {
  const uint32_t quadrant = (bits + 0x20000000u) >> 30;
  const float angle = float(int32_t(bits - (quadrant << 30))) * (6.2831853f * 0x1p-32f);
  const float a2 = angle * angle;
  const float sine =
      angle * (1.0f + a2 * (-1.6666667e-1f + a2 * (8.3333333e-3f + a2 * (-1.9841270e-4f + a2 * 2.7557319e-6f))));
  const float cosine =
      1.0f + a2 * (-0.5f + a2 * (4.1666667e-2f + a2 * (-1.3888889e-3f + a2 * (2.4801587e-5f - a2 * 2.7557319e-7f))));
  const float s = quadrant & 1 ? cosine : sine;
  const float c = quadrant & 1 ? sine : cosine;
  return {quadrant & 2 ? -s : s, (quadrant + 1) & 2 ? -c : c};
}

struct Noise {
  float channel[3];
};

LGFAST_HOST_DEVICE Noise noise_pixel(uint32_t key0, uint32_t key1, uint32_t pixel) {
  const PhiloxWords bits = philox_4x32({{pixel, 0, 0, 0}}, key0, key1);
  const float radius0 = sqrtf(-2.0f * series_log((float(bits.word[0]) + 1.0f) * 0x1p-32f));
  const float radius1 = sqrtf(-2.0f * series_log((float(bits.word[2]) + 1.0f) * 0x1p-32f));
  const SineCosine first = sine_cosine_turn(bits.word[1]), second = sine_cosine_turn(bits.word[3]);
  return {{radius0 * first.cosine, radius0 * first.sine, radius1 * second.cosine}};
}

}  // namespace lgfast
