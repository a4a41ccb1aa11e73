// Philox 4x32-10 for host and device: the counter-based generator behind every random decision about data.
// lgfast/ops/reference/philox.py computes the same in Python and numbers the same blocks; the two lists must agree.
// Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/host_device.h"

namespace lgfast {

struct PhiloxWords {
  uint32_t word[4];
};

// Blocks of four words per (seed, epoch, sample index).
enum PhiloxBlock : uint32_t {
  kCropBlock = 0,             // to 9, one block per try: area, ratio, top, left
  kFlipBlock = 10,            // flip, erase or not, shift_y, shift_x
  kNoiseBlock = 11,           // key of the erase noise (two words), vertical flip
  kEraseBlock = 12,           // to 21, one block per try: area, ratio, top, left
  kJitterBlock = 22,          // to 23: brightness, contrast, saturation, hue; sort keys of their order
  kTrivialAugmentBlock = 24,  // operation, magnitude, sign
  kThreeAugmentBlock = 25,    // operation, radius
  kRandAugmentBlock = 32,     // two blocks per slot: fire, op, sign, uniform magnitude; normal magnitude (two words)
};

LGFAST_HOST_DEVICE PhiloxWords philox_4x32(PhiloxWords counter, uint32_t key0, uint32_t key1) {
  uint32_t c0 = counter.word[0], c1 = counter.word[1], c2 = counter.word[2], c3 = counter.word[3];
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t(0xD2511F53u) * c0;
    const uint64_t product1 = uint64_t(0xCD9E8D57u) * c2;
    c0 = uint32_t(product1 >> 32) ^ c1 ^ key0;
    c1 = uint32_t(product1);
    c2 = uint32_t(product0 >> 32) ^ c3 ^ key1;
    c3 = uint32_t(product0);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// The words of one block of one sample.
LGFAST_HOST_DEVICE PhiloxWords sample_bits(int64_t seed, int64_t epoch, int64_t index, uint32_t block) {
  const PhiloxWords counter = {{block, uint32_t(epoch), uint32_t(index), uint32_t(uint64_t(index) >> 32)}};
  return philox_4x32(counter, uint32_t(seed), uint32_t(uint64_t(seed) >> 32));
}

// [0, 1)
LGFAST_HOST_DEVICE double uniform(uint32_t bits) { return bits * 0x1p-32; }

// 0 ... bound - 1
LGFAST_HOST_DEVICE int64_t below(uint32_t bits, int64_t bound) { return int64_t((uint64_t(bits) * bound) >> 32); }

// Box-Muller, cosine branch.
LGFAST_HOST_DEVICE double standard_normal(uint32_t radius_bits, uint32_t angle_bits) {
  const double radius = sqrt(-2.0 * log((radius_bits + 1.0) * 0x1p-32));
  return radius * cos(2.0 * 3.141592653589793 * uniform(angle_bits));
}

}  // namespace lgfast
