// Pillow's resize along one axis, for host and device: which input pixels an output pixel is made of, and their weights
// in fixed point, limited to the crop and normalised. Compile without contraction of a * b + c.
#pragma once

#include <cmath>

#include "augment/augment.h"
#include "common/host_device.h"

namespace lgfast {

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

// Returns which input pixels output pixel `position` is made of.
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

// Turns a sum of weighed pixels, which starts at kFixedHalf, into a pixel.
LGFAST_HOST_DEVICE uint8_t from_fixed(int sum) { return uint8_t(clamp(sum >> kWeightBits, 0, 255)); }
constexpr int kFixedHalf = 1 << (kWeightBits - 1);

}  // namespace lgfast
