// The operations of a view as their policies draw them; lgfast/ops/reference/augment_policies.py is the same in
// PyTorch.
#pragma once

#include "augment/augment.h"
#include "common/philox.h"

namespace lgfast {

struct SampleKey {
  int64_t seed, epoch, index;
  LGFAST_HOST_DEVICE PhiloxWords bits(uint32_t block) const { return sample_bits(seed, epoch, index, block); }
};

struct PlannedOp {
  AugmentOp op;
  double argument;
  LGFAST_HOST_DEVICE void write(double* columns) const {
    columns[0] = int(op);
    columns[1] = argument;
  }
};

LGFAST_HOST_DEVICE double at_most(double value, double limit) { return value < limit ? value : limit; }

// timm's argument: degrees, bits, threshold, addend, factor or part of the size; level is magnitude / 10.
LGFAST_HOST_DEVICE double op_argument(AugmentOp op, double level, double sign, bool increasing) {
  switch (op) {
    case AugmentOp::kRotate: return sign * (level * 30.0);
    case AugmentOp::kPosterize: return increasing ? 4.0 - trunc(level * 4) : trunc(level * 4);
    case AugmentOp::kSolarize: {
      const double threshold = at_most(trunc(level * 256), 256);
      return increasing ? 256 - threshold : threshold;
    }
    case AugmentOp::kSolarizeAdd: return at_most(trunc(level * 110), 128);
    case AugmentOp::kColor:
    case AugmentOp::kContrast:
    case AugmentOp::kBrightness:
    case AugmentOp::kSharpness: {
      const double factor = 1.0 + sign * (level * 0.9);
      return !increasing ? level * 1.8 + 0.1 : factor > 0.1 ? factor : 0.1;
    }
    case AugmentOp::kShearX:
    case AugmentOp::kShearY: return sign * (level * 0.3);
    case AugmentOp::kTranslateX:
    case AugmentOp::kTranslateY: return sign * (level * 0.45);
    default: return 0;
  }
}

LGFAST_HOST_DEVICE PlannedOp draw_rand_augment(const AugmentPlanParams& p, const SampleKey& key, int slot) {
  const PhiloxWords bits = key.bits(kRandAugmentBlock + 2 * slot);
  if (uniform(bits.word[0]) >= p.op_prob) return {AugmentOp::kSkip, 0};
  double magnitude = p.magnitude;
  if (p.magnitude_std == HUGE_VAL) {
    magnitude *= uniform(bits.word[3]);
  } else {
    const PhiloxWords normal = key.bits(kRandAugmentBlock + 2 * slot + 1);
    magnitude += p.magnitude_std * standard_normal(normal.word[0], normal.word[1]);
  }
  const double level = (magnitude < 0 ? 0 : at_most(magnitude, p.magnitude_max)) / 10.0;
  const double sign = (bits.word[2] & 1) ? -1.0 : 1.0;
  const AugmentOp op = AugmentOp(int(below(bits.word[1], kNumRandAugmentOps)));
  return {op, op_argument(op, level, sign, p.increasing)};
}

constexpr int kNumTrivialOps = 14, kNumMagnitudes = 31;

// Place k of torch.linspace(0, strongest, 31), float32, on processors that fuse a * b + c.
LGFAST_HOST_DEVICE double trivial_magnitude(float strongest, int k) {
  const double step = strongest / float(kNumMagnitudes - 1);
  return float(k < kNumMagnitudes / 2 ? step * k : double(strongest) - step * (kNumMagnitudes - 1 - k));
}

// torchvision's argument; shear goes by an angle in degrees and back.
LGFAST_HOST_DEVICE double trivial_argument(AugmentOp op, int k, double sign) {
  constexpr double kDegree = 3.141592653589793 / 180.0;
  constexpr double kDegrees = 180.0 / 3.141592653589793;
  switch (op) {
    case AugmentOp::kShearX:
    case AugmentOp::kShearY: return tan(atan(sign * trivial_magnitude(0.99f, k)) * kDegrees * kDegree);
    case AugmentOp::kTranslateXPixels:
    case AugmentOp::kTranslateYPixels: return -trunc(sign * trivial_magnitude(32.0f, k));
    case AugmentOp::kRotate: return sign * trivial_magnitude(135.0f, k);
    case AugmentOp::kColor:
    case AugmentOp::kContrast:
    case AugmentOp::kBrightness:
    case AugmentOp::kSharpness: return 1.0 + sign * trivial_magnitude(0.99f, k);
    case AugmentOp::kPosterize: return 8.0 - rint(k / 5.0);
    case AugmentOp::kSolarize: return ceil(255.0 - 8.5 * k);  // values below 255 ... 0 by steps of 8.5 stay
    default: return 0;
  }
}

// In torchvision's order; a switch, since an array with a computed index lies in a GPU's local memory.
LGFAST_HOST_DEVICE AugmentOp trivial_op(int64_t place) {
  switch (place) {
    case 1: return AugmentOp::kShearX;
    case 2: return AugmentOp::kShearY;
    case 3: return AugmentOp::kTranslateXPixels;
    case 4: return AugmentOp::kTranslateYPixels;
    case 5: return AugmentOp::kRotate;
    case 6: return AugmentOp::kBrightness;
    case 7: return AugmentOp::kColor;
    case 8: return AugmentOp::kContrast;
    case 9: return AugmentOp::kSharpness;
    case 10: return AugmentOp::kPosterize;
    case 11: return AugmentOp::kSolarize;
    case 12: return AugmentOp::kAutoContrast;
    case 13: return AugmentOp::kEqualize;
    default: return AugmentOp::kSkip;
  }
}

LGFAST_HOST_DEVICE PlannedOp draw_trivial_augment(const SampleKey& key) {
  const PhiloxWords bits = key.bits(kTrivialAugmentBlock);
  const AugmentOp op = trivial_op(below(bits.word[0], kNumTrivialOps));
  return {op, trivial_argument(op, int(below(bits.word[1], kNumMagnitudes)), (bits.word[2] & 1) ? -1.0 : 1.0)};
}

LGFAST_HOST_DEVICE PlannedOp draw_three_augment(const SampleKey& key) {
  const PhiloxWords bits = key.bits(kThreeAugmentBlock);
  switch (below(bits.word[0], 3)) {
    case 0: return {AugmentOp::kSolarize, 128};
    case 1: return {AugmentOp::kColor, 0};  // grey
    default: return {AugmentOp::kGaussianBlur, 0.1 + (2.0 - 0.1) * uniform(bits.word[1])};
  }
}

LGFAST_HOST_DEVICE PlannedOp draw_op(const AugmentPlanParams& p, const SampleKey& key, int slot) {
  switch (p.policy) {
    case AugmentPolicy::kTrivialAugment: return draw_trivial_augment(key);
    case AugmentPolicy::kThreeAugment: return draw_three_augment(key);
    default: return draw_rand_augment(p, key, slot);
  }
}

// The slots that the jitter takes.
LGFAST_HOST_DEVICE int num_jitter_ops(const double (&jitter)[kNumJitterOps]) {
  int count = 0;
  for (const double strength : jitter) count += strength > 0;
  return count;
}

// torchvision's ColorJitter: the operations whose strength is not 0, in random order.
LGFAST_HOST_DEVICE void draw_jitter(const double (&jitter)[kNumJitterOps], const SampleKey& key, double* columns) {
  constexpr AugmentOp kOps[kNumJitterOps] = {AugmentOp::kBrightness, AugmentOp::kContrast, AugmentOp::kColor,
                                             AugmentOp::kHue};
  if (num_jitter_ops(jitter) == 0) return;
  const PhiloxWords bits = key.bits(kJitterBlock), order = key.bits(kJitterBlock + 1);
  for (int k = 0; k < kNumJitterOps; ++k) {
    const double strength = jitter[k];
    if (!(strength > 0)) continue;
    int place = 0;
    for (int other = 0; other < kNumJitterOps; ++other) {
      const uint32_t mine = order.word[k], theirs = order.word[other];
      place += jitter[other] > 0 && (theirs < mine || (theirs == mine && other < k));
    }
    const bool is_hue = kOps[k] == AugmentOp::kHue;
    const double low = is_hue ? -strength : strength < 1 ? 1 - strength : 0, high = is_hue ? strength : 1 + strength;
    PlannedOp{kOps[k], low + (high - low) * uniform(bits.word[k])}.write(columns + 2 * place);
  }
}

}  // namespace lgfast
