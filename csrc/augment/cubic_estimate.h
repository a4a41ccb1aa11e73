// Bicubic pixels in float32, as far as they are certain to be those of the exact arithmetic in double; for GPUs, where
// doubles and their conversions are slow. affine.h computes the others.
//
// A pixel is its value rounded down. The estimate decides it where it lies further than kMargin from a whole number:
// - A row's value is v1 + d * (p2 + d * (p3 + d * p4)) with whole numbers |p2| <= 255, |p3| <= 765, |p4| <= 510. Three
//   fused operations, rounded in one direction, of results below 2^11 err by at most 3 * 2^-13 together; d, rounded to
//   float, by 2^-25, moves it by at most 3315 * 2^-25. Together less than 0.00047.
// - The four weights of the rows are at most 1.5 in sum of their amounts, so their errors come to 0.0007. Rows lie
//   within -64 ... 319, so their differences round by less than 0.00025, three fused operations of results below 2^12
//   by 3 * 2^-12, d by 4979 * 2^-25. Together less than 0.0019.
// The double arithmetic itself errs by less than 1e-11.
#pragma once

#include "augment/exact_double.h"

namespace lgfast {

#if !defined(LGFAST_DEVICE)
template <int kRows, int kCount>
LGFAST_HOST_DEVICE bool estimate_pixels(const uint32_t (&)[kRows][kCount], const double (&)[kCount],
                                        const double (&)[kCount], const int (&)[kCount], int, uint8_t*) {
  return false;
}
#else
constexpr float kMargin = 0x1p-9f;  // 0.00195

// Returns the weighed sum of four bytes as a float. The sum is added to the bits of 1.5 * 2^23, whose last bits count
// in ones.
LGFAST_HOST_DEVICE float weighed(uint32_t bytes, uint32_t weights) {
  constexpr float kOnes = 0x1.8p23f;
  return bit_cast<float>(uint32_t(dot_bytes(bytes, weights, int(bit_cast<uint32_t>(kOnes))))) - kOnes;
}

// v1 + d * (p2 + d * (p3 + d * p4)) of four neighbours.
LGFAST_HOST_DEVICE float estimate_cubic(uint32_t taps, float d) {
  const float p2 = weighed(taps, 0x000100ffu), p3 = weighed(taps, 0xff01fe02u), p4 = weighed(taps, 0x01ff01ffu);
  return fma_down(d, fma_down(d, fma_down(d, p4, p3), p2), weighed(taps, 0x00000100u));
}
LGFAST_HOST_DEVICE float estimate_cubic(float v0, float v1, float v2, float v3, float d) {
  const float fall = v0 - v1, rise = v2 - v3;
  return fma_down(d, fma_down(d, fma_down(d, -fall - rise, fall + fall + rise), v2 - v0), v1);
}

// Gives the largest whole number not above the value. Returns false where the value is too near to a whole number.
LGFAST_HOST_DEVICE bool certain_floor(float value, int& whole) {
  const float shifted = fma_down(value, 1.0f, 0x1.8p23f), rest = value - (shifted - 0x1.8p23f);
  whole = int(bit_cast<uint32_t>(shifted)) - int(bit_cast<uint32_t>(0x1.8p23f));
  return rest > kMargin && rest < 1.0f - kMargin;
}

// Makes pixels from the neighbours of each: from one row, or from four rows, which `down` weighs. A pixel outside gets
// `fill`. Returns false, and writes nothing, where a pixel is not certain; one whose neighbours are all alike is not.
template <int kRows, int kCount>
LGFAST_HOST_DEVICE bool estimate_pixels(const uint32_t (&taps)[kRows][kCount], const double (&across)[kCount],
                                        const double (&down)[kCount], const int (&inside)[kCount], int fill,
                                        uint8_t* out) {
  int pixel[kCount];
  for (int l = 0; l < kCount; ++l) {
    float v[kRows];
    for (int k = 0; k < kRows; ++k) v[k] = estimate_cubic(taps[k][l], float(across[l]));
    float value = v[0];
    if constexpr (kRows == 4) value = estimate_cubic(v[0], v[1], v[2], v[3], float(down[l]));
    if (!certain_floor(value, pixel[l])) {
      uint32_t differing = 0;
      for (int k = 0; k < kRows; ++k) differing |= taps[k][l] ^ (uint32_t(byte_of(taps[0][l], 0)) * 0x01010101u);
      if (differing != 0) return false;
      pixel[l] = byte_of(taps[0][l], 0);
    }
    pixel[l] = pixel[l] < 0 ? 0 : pixel[l] > 255 ? 255 : pixel[l];
  }
  for (int l = 0; l < kCount; ++l) out[l] = uint8_t(inside[l] ? pixel[l] : fill);
  return true;
}
#endif

}  // namespace lgfast
