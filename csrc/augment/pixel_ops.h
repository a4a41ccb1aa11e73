// Pillow's arithmetic on 8-bit pixels, for host and device: the CPU kernel that the tests compare with Pillow bit for
// bit is the code the GPU runs. Compile without contraction of a * b + c: Pillow's x86 wheels have none.
#pragma once

#include <cmath>
#include <cstdint>

#include "augment/augment.h"
#include "common/float16.h"

namespace lgfast {

LGFAST_HOST_DEVICE int clamp(int value, int low, int high) { return value < low ? low : value > high ? high : value; }

// ---- resize: separable, fixed point, taps limited to the crop and normalised
// -----------------------------------------

constexpr int kWeightBits = 22;    // 32 - 8 bits of pixel - 2 bits for negative weights and overshoot
constexpr int kEnlargingTaps = 4;  // of every filter; rounding may let a fifth pixel in, whose weight is 0

struct TapSpan {
  int first, count;  // input pixels first ... first + count - 1
};

// One axis of a resize from `in` to `out` pixels.
struct ResizeAxis {
  Resample resample;
  int in, out;
  LGFAST_HOST_DEVICE double scale() const { return double(in) / out; }
  LGFAST_HOST_DEVICE double filter_scale() const { return scale() < 1.0 ? 1.0 : scale(); }
  LGFAST_HOST_DEVICE double support() const {
    return (resample == Resample::kBicubic ? 2.0 : resample == Resample::kBilinear ? 1.0 : 0.0) * filter_scale();
  }
  LGFAST_HOST_DEVICE bool enlarges() const { return in <= out; }
  LGFAST_HOST_DEVICE int max_taps() const { return enlarges() ? kEnlargingTaps : int(ceil(support())) * 2 + 1; }
};

// Cubic with a = -0.5, triangle, or the one pixel of the nearest neighbour.
LGFAST_HOST_DEVICE double resize_filter(Resample resample, double x) {
  if (resample == Resample::kNearest) return 1.0;
  x = fabs(x);
  if (resample == Resample::kBilinear) return x < 1.0 ? 1.0 - x : 0.0;
  if (x < 1.0) return (1.5 * x - 2.5) * x * x + 1;
  if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * -0.5;
  return 0.0;
}

LGFAST_HOST_DEVICE int to_fixed(double weight) { return int((weight < 0 ? -0.5 : 0.5) + weight * (1 << kWeightBits)); }

// Input pixels that output pixel `position` is made of.
LGFAST_HOST_DEVICE TapSpan resize_range(const ResizeAxis& axis, int position) {
  if (axis.resample == Resample::kNearest) {
    double source = axis.scale() * 0.5;  // Pillow steps along the axis, and its rounding errors add up
    for (int step = 0; step < position; ++step) source += axis.scale();
    return {clamp(int(source), 0, axis.in - 1), 1};
  }
  const double center = (position + 0.5) * axis.scale();
  const int low = int(center - axis.support() + 0.5);
  const int high = int(center + axis.support() + 0.5);
  const int first = low < 0 ? 0 : low;
  const int count = (high > axis.in ? axis.in : high) - first;
  return {first, axis.enlarges() && count > kEnlargingTaps ? kEnlargingTaps : count};
}

// The same, with their weights: max_taps() where the axis is enlarged, else count.
LGFAST_HOST_DEVICE TapSpan resize_taps(const ResizeAxis& axis, int position, int* weights) {
  const TapSpan range = resize_range(axis, position);
  const double center = (position + 0.5) * axis.scale();
  double sum = 0.0;
  if (axis.enlarges()) {
    double weight[kEnlargingTaps];
    for (int k = 0; k < kEnlargingTaps; ++k) {
      const double value = resize_filter(axis.resample, k + range.first - center + 0.5);
      weight[k] = k < range.count ? value : 0.0;
      sum += weight[k];
    }
    for (int k = 0; k < kEnlargingTaps; ++k) weights[k] = to_fixed(sum != 0.0 ? weight[k] / sum : weight[k]);
    return range;
  }
  const double inverse_scale = 1.0 / axis.filter_scale();
  for (int k = 0; k < range.count; ++k) {
    sum += resize_filter(axis.resample, (k + range.first - center + 0.5) * inverse_scale);
  }
  for (int k = 0; k < range.count; ++k) {
    const double weight = resize_filter(axis.resample, (k + range.first - center + 0.5) * inverse_scale);
    weights[k] = to_fixed(sum != 0.0 ? weight / sum : weight);
  }
  return range;
}

LGFAST_HOST_DEVICE uint8_t from_fixed(int sum) { return uint8_t(clamp(sum >> kWeightBits, 0, 255)); }
constexpr int kFixedHalf = 1 << (kWeightBits - 1);

// ---- operations on one value
// ------------------------------------------------------------------------------------------

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
