// Pillow's arithmetic on 8-bit values, for host and device: the CPU kernel that the tests compare with Pillow bit for
// bit is the code the GPU runs. Compile without contraction of a * b + c: Pillow's x86 wheels have none.
#pragma once

#include "augment/augment.h"
#include "common/host_device.h"

namespace lgfast {

LGFAST_HOST_DEVICE int luma(int r, int g, int b) { return (19595 * r + 38470 * g + 7471 * b + 0x8000) >> 16; }

// ImagingBlend: float arithmetic, truncated. factor 1 gives `image`, 0 gives `degenerate`.
LGFAST_HOST_DEVICE uint8_t blend(int degenerate, int image, float factor) {
  const float value = float(degenerate) + factor * float(image - degenerate);
  return uint8_t(int(value < 0.0f ? 0.0f : value > 255.0f ? 255.0f : value));
}

// The 3x3 smoothing [1 1 1; 1 5 1; 1 1 1] / 13, from the sum of all nine and the centre; no ties, since 13 is odd.
// 20165 / 2^18 divides every number up to 13 * 255 + 6 by 13.
LGFAST_HOST_DEVICE int smooth(int sum_of_nine, int center) { return ((sum_of_nine + 4 * center + 6) * 20165) >> 18; }

LGFAST_HOST_DEVICE uint8_t autocontrast_value(int value, int low, int high) {
  if (high <= low) return uint8_t(value);
  const double scale = 255.0 / (high - low);
  const double offset = -low * scale;
  return uint8_t(clamp(int(value * scale + offset), 0, 255));
}

// Operations whose result depends on the value and the plan's argument only.
LGFAST_HOST_DEVICE uint8_t point_value(AugmentOp op, int value, double argument, int mean_luma) {
  switch (op) {
    case AugmentOp::kInvert: return uint8_t(255 - value);
    case AugmentOp::kPosterize: {
      const int bits = int(argument);
      return bits <= 0 ? 0 : bits >= 8 ? uint8_t(value) : uint8_t(value & ~((1 << (8 - bits)) - 1));
    }
    case AugmentOp::kSolarize: return uint8_t(value < int(argument) ? value : 255 - value);
    case AugmentOp::kSolarizeAdd: return uint8_t(value < 128 ? clamp(value + int(argument), 0, 255) : value);
    case AugmentOp::kBrightness: return blend(0, value, float(argument));
    case AugmentOp::kContrast: return blend(mean_luma, value, float(argument));
    default: return uint8_t(value);
  }
}

// num_darker: pixels below the value; num_below_brightest: pixels below the channel's brightest value. The running sum
// starts at half a step.
LGFAST_HOST_DEVICE uint8_t equalized_value(int value, uint32_t num_darker, uint32_t num_below_brightest) {
  const uint32_t step = num_below_brightest / 255;
  if (step == 0) return uint8_t(value);
  const uint32_t level = (step / 2 + num_darker) / step;
  return uint8_t(level < 255 ? level : 255);
}

}  // namespace lgfast
