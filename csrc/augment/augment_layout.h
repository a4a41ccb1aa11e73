// The working memory of one image, and the largest crop it can hold; for host and device.
#pragma once

#include "augment/resize_axis.h"
#include "common/arithmetic.h"

namespace lgfast {

constexpr int kPlaneAlignment = 32;        // rows start at multiples of it; at least every team's kStrip
constexpr int kMinSpareBytes = 56 * 1024;  // with 3 planes of 224 x 224 this fills an H100's shared memory
constexpr int kWeightCapacity = 2048;      // resize weights of an axis in memory at a time
constexpr int kTableSize = 3 * 256;

// The darkest and the brightest value of a channel.
struct ValueRange {
  int low, high;
};

// Byte offsets of the working memory of one image.
struct AugmentLayout {
  int size, pitch, spare_rows;  // spare_rows: rows of all three channels that the spare holds
  int64_t planes, spare, weights, taps, histogram, lut, ranges, total, num_bytes;
};

constexpr int kPlanesOffset = kPlaneAlignment;  // sharpening reads one byte before the first row
LGFAST_HOST_DEVICE constexpr int pitch_of(int size) { return round_up(size, kPlaneAlignment); }
LGFAST_HOST_DEVICE constexpr int64_t spare_bytes_of(int size) {
  const int64_t plane = int64_t(size) * pitch_of(size);
  return plane > kMinSpareBytes ? plane : kMinSpareBytes;
}
LGFAST_HOST_DEVICE constexpr int spare_rows_of(int size) { return int(spare_bytes_of(size) / (3 * pitch_of(size))); }

LGFAST_HOST_DEVICE AugmentLayout augment_layout(int size) {
  AugmentLayout l;
  l.size = size;
  l.pitch = pitch_of(size);
  const int64_t plane = int64_t(size) * l.pitch, spare_bytes = spare_bytes_of(size);
  l.spare_rows = spare_rows_of(size);
  l.planes = kPlanesOffset;
  l.spare = l.planes + 3 * plane;
  l.weights = l.spare + spare_bytes;
  l.taps = l.weights + 2 * kWeightCapacity * sizeof(int);
  l.histogram = l.taps + 2 * int64_t(size) * sizeof(TapSpan);
  l.lut = l.histogram + kTableSize * sizeof(uint32_t);
  l.ranges = l.lut + kTableSize;
  l.total = l.ranges + 3 * sizeof(ValueRange);
  l.num_bytes = (l.total + int64_t(sizeof(uint32_t)) + 127) / 128 * 128;
  return l;
}

// Bytes of moved pixels, values [3, S, S], where they do not lie in the memory of the view.
LGFAST_HOST_DEVICE int64_t moved_bytes_of(int size, int value_bytes) {
  return round_up(3 * int64_t(value_bytes) * size * size, 128);
}

// Whether the source rows of one output row fit into the spare, and the weights of one output pixel into memory.
LGFAST_HOST_DEVICE bool crop_fits(const AugmentLayout& layout, Resample resample, int height, int width) {
  const int down = ResizeAxis{resample, height, layout.size}.max_taps();
  const int across = ResizeAxis{resample, width, layout.size}.max_taps();
  return down <= layout.spare_rows && down <= kWeightCapacity && across <= kWeightCapacity;
}

// The longest side of images all of whose crops fit.
inline int largest_augment_side(int size, Resample resample) {
  const AugmentLayout layout = augment_layout(size);
  int fitting = size, failing = INT32_MAX / 2;
  while (failing - fitting > 1) {
    const int side = fitting + (failing - fitting) / 2;
    (crop_fits(layout, resample, side, side) ? fitting : failing) = side;
  }
  return fitting;
}

}  // namespace lgfast
