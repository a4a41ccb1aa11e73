// One row of augment_plan: timm's distributions from Philox words, a function of (seed, epoch, sample index) alone.
// lgfast/ops/reference/augment_plan.py is the same in PyTorch. Numbers are double, as in Python, so that rounding
// agrees; compile without contraction of a * b + c.
#pragma once

#include "augment/augment.h"
#include "augment/augment_policies.h"
#include "common/philox.h"

namespace lgfast {

constexpr int kNumTries = 10;  // of the two rejection samplers, as in timm

// Sides of a rectangle of the area, rounded half to even, with a log-uniform ratio first / second.
struct Box {
  int64_t first, second;
};
LGFAST_HOST_DEVICE Box draw_box(double area, const double (&log_ratio)[2], uint32_t bits) {
  const double ratio = exp(log_ratio[0] + (log_ratio[1] - log_ratio[0]) * uniform(bits));
  return {int64_t(rint(sqrt(area * ratio))), int64_t(rint(sqrt(area / ratio)))};
}

// Draws the random resized crop: ten tries, then the largest centred crop within the ratio bounds.
LGFAST_HOST_DEVICE void draw_crop(const AugmentPlanParams& p, const SampleKey& key, int64_t height, int64_t width,
                                  double* row) {
  const double log_ratio[2] = {log(p.crop_ratio[0]), log(p.crop_ratio[1])};
  int64_t top = 0, left = 0, crop_height = height, crop_width = width;
  bool accepted = p.whole_image;
  for (int attempt = 0; attempt < kNumTries && !accepted; ++attempt) {
    const PhiloxWords bits = key.bits(kCropBlock + attempt);
    const double scale = p.crop_scale[0] + (p.crop_scale[1] - p.crop_scale[0]) * uniform(bits.word[0]);
    const Box box = draw_box(scale * double(height * width), log_ratio, bits.word[1]);
    crop_width = box.first > 1 ? box.first : 1;
    crop_height = box.second > 1 ? box.second : 1;
    accepted = crop_height <= height && crop_width <= width;
    if (!accepted) continue;
    top = below(bits.word[2], height - crop_height + 1);
    left = below(bits.word[3], width - crop_width + 1);
  }
  if (!accepted) {
    const double in_ratio = double(width) / double(height);
    crop_height = in_ratio < p.crop_ratio[0] ? int64_t(rint(double(width) / p.crop_ratio[0])) : height;
    crop_width = in_ratio > p.crop_ratio[1] ? int64_t(rint(double(height) * p.crop_ratio[1])) : width;
    top = (height - crop_height) / 2;
    left = (width - crop_width) / 2;
  }
  row[kCropTop] = double(top);
  row[kCropLeft] = double(left);
  row[kCropHeight] = double(crop_height);
  row[kCropWidth] = double(crop_width);
}

// Draws the rectangle to erase: ten tries; where all fail, nothing is erased.
LGFAST_HOST_DEVICE void draw_erase(const AugmentPlanParams& p, const SampleKey& key, double chance, double* row) {
  constexpr double kArea[2] = {0.02, 1.0 / 3.0};  // of the output, timm's defaults
  const double log_ratio[2] = {log(0.3), log(1.0 / 0.3)};
  const int64_t size = p.image_size;
  for (int column = kEraseTop; column <= kEraseWidth; ++column) row[column] = 0;
  if (p.whole_image || !(chance < p.erase_prob)) return;
  for (int attempt = 0; attempt < kNumTries; ++attempt) {
    const PhiloxWords bits = key.bits(kEraseBlock + attempt);
    const double part = kArea[0] + (kArea[1] - kArea[0]) * uniform(bits.word[0]);
    const Box box = draw_box(part * double(size * size), log_ratio, bits.word[1]);
    if (box.first >= size || box.second >= size) continue;
    row[kEraseTop] = double(below(bits.word[2], size - box.first + 1));
    row[kEraseLeft] = double(below(bits.word[3], size - box.second + 1));
    row[kEraseHeight] = double(box.first);
    row[kEraseWidth] = double(box.second);
    return;
  }
}

// Draws row b of the plan.
LGFAST_HOST_DEVICE void draw_plan_row(const AugmentPlanParams& p, int64_t b) {
  const SampleKey key = {p.counter[0], p.counter[1], p.indices[b]};
  double* row = p.plan + b * p.num_columns;
  draw_crop(p, key, p.sizes[2 * b], p.sizes[2 * b + 1], row);
  const PhiloxWords bits = key.bits(kFlipBlock), noise = key.bits(kNoiseBlock);
  row[kShiftY] = double(below(bits.word[2], 2 * p.max_shift + 1) - p.max_shift);
  row[kShiftX] = double(below(bits.word[3], 2 * p.max_shift + 1) - p.max_shift);
  row[kFlip] = (uniform(bits.word[0]) < p.flip_prob ? kMirrored : 0) +
               (uniform(noise.word[2]) < p.vertical_flip_prob ? kUpsideDown : 0);
  draw_erase(p, key, uniform(bits.word[1]), row);
  row[kNoiseKey0] = noise.word[0];
  row[kNoiseKey1] = noise.word[1];
  for (int slot = 0; slot < p.num_ops; ++slot) draw_op(p, key, slot).write(row + kFirstOp + 2 * slot);
  draw_jitter(p.jitter, key, row + kFirstOp + 2 * p.num_ops);
}

}  // namespace lgfast
