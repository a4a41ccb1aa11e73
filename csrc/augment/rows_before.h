// Which rows of an image an operation reads to make given rows of the next: at least those; for host and device.
#pragma once

#include "augment/augment_rows.h"
#include "augment/box_blur.h"
#include "augment/noise.h"

namespace lgfast {

// Rows between two coordinates, and what a bicubic pixel reads beyond them. An argument that is no number gives all.
LGFAST_HOST_DEVICE Rows rows_between(float low, float high, int size) {
  constexpr float kReach = 4;  // two pixels, and whatever float32 rounds
  low -= kReach, high += kReach;
  const int begin = low > 0 ? low < float(size) ? int(low) : size : 0;
  const int end = high < float(size) ? high > 0 ? int(high) : 0 : size;
  const int first = begin / kRowsTogether * kRowsTogether, last = round_up(end, kRowsTogether);
  return {first, last < first ? first : last < size ? last : size};
}

// argument: see op_argument() and trivial_argument() in augment_policies.h.
LGFAST_HOST_DEVICE Rows rows_before(AugmentOp op, double argument, Rows rows, int size) {
  const float begin = float(rows.begin), end = float(rows.end), side = float(size), by = float(argument);
  if (counts_values(op)) return {0, size};
  switch (op) {
    case AugmentOp::kSharpness: return rows_between(begin, end, size);
    case AugmentOp::kGaussianBlur: {
      const float reach = 3 * float(box_of(by).radius + 1);  // of three boxes
      return rows_between(begin - reach, end + reach, size);
    }
    case AugmentOp::kRotate: {
      if (!(fabs(argument) < 1e6)) return {0, size};
      const SineCosine turn = sine_cosine_turn(uint32_t(int64_t(argument * (0x1p32 / 360))));
      const float center = side / 2, reach = fabsf(turn.sine) * center;
      const float upper = turn.cosine * (begin - center), lower = turn.cosine * (end - center);
      return rows_between(center + (upper < lower ? upper : lower) - reach,
                          center + (upper < lower ? lower : upper) + reach, size);
    }
    case AugmentOp::kShearY:
      return rows_between(begin + (by < 0 ? by * side : 0), end + (by < 0 ? 0 : by * side), size);
    case AugmentOp::kTranslateY: return rows_between(begin + by * side, end + by * side, size);
    case AugmentOp::kTranslateYPixels: return rows_between(begin + by, end + by, size);
    default: return rows;
  }
}

}  // namespace lgfast
