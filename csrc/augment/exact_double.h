// Conversions between whole numbers and doubles, and to bytes of a word, which a GPU does faster in another way with
// the same results.
//
// A GPU adds doubles at four times the rate at which it converts them: there, conversions are additions to a double so
// large that its last bits are whole numbers.
#pragma once

#include <cmath>

#include "common/host_device.h"

#if defined(__CUDA_ARCH__) || defined(LGFAST_EMULATION)
#define LGFAST_DEVICE
#include "common/device.cuh"
#endif

namespace lgfast {

#if !defined(LGFAST_DEVICE)
// pixel + 0.5
LGFAST_HOST_DEVICE double center_of(int pixel) { return pixel + 0.5; }
// Splits value into the largest whole number not above it, and the rest.
LGFAST_HOST_DEVICE int floor_and_rest(double value, double& rest) {
  const double low = floor(value);
  rest = value - low;
  return int(low);
}
// value clamped to 0 ... 255 and truncated.
LGFAST_HOST_DEVICE int truncated(double value) { return int(value < 0.0 ? 0.0 : value > 255.0 ? 255.0 : value); }
// Whether value lies in [0, size): 1 or 0, so that loops over pixels have no branch.
LGFAST_HOST_DEVICE int is_inside(double value, int size) { return (value >= 0) & (value < size); }
// Pixels x ... x + 3 of a row, the first one lowest.
LGFAST_HOST_DEVICE uint32_t four_pixels(const uint8_t* row, int x) {
  uint32_t word;
  memcpy(&word, row + x, 4);
  return word;
}
// Byte k of a word, counted from the lowest.
LGFAST_HOST_DEVICE int byte_of(uint32_t word, int k) { return int((word >> (8 * k)) & 255); }
#else
// 2^51 + pixel + 0.5 counts in halves: its last bits are 2 pixel + 1.
LGFAST_HOST_DEVICE double center_of(int pixel) {
  return bit_cast<double>(0x4320000000000000u | (2 * uint32_t(pixel) + 1)) - 0x1p51;
}
// 1.5 * 2^52 + value, rounded down, counts in ones: its last bits are the whole number.
LGFAST_HOST_DEVICE int floor_and_rest(double value, double& rest) {
  const double shifted = add_down(value, 0x1.8p52);
  rest = value - (shifted - 0x1.8p52);
  return int(uint32_t(bit_cast<uint64_t>(shifted)));
}
LGFAST_HOST_DEVICE int floor_of(double value) { return int(uint32_t(bit_cast<uint64_t>(add_down(value, 0x1.8p52)))); }
LGFAST_HOST_DEVICE int truncated(double value) {
  const int whole = floor_of(value);
  return whole < 0 ? 0 : whole > 255 ? 255 : whole;
}
LGFAST_HOST_DEVICE int is_inside(double value, int size) { return uint32_t(floor_of(value)) < uint32_t(size); }
// Two words instead of four bytes: the row starts at a multiple of 4 bytes, and up to 4 bytes behind the pixels are
// read as well.
LGFAST_HOST_DEVICE uint32_t four_pixels(const uint8_t* row, int x) {
  const uint32_t* words = reinterpret_cast<const uint32_t*>(row + (x & ~3));
  return uint32_t((uint64_t(words[1]) << 32 | words[0]) >> (8 * (x & 3)));
}
LGFAST_HOST_DEVICE int byte_of(uint32_t word, int k) { return select_byte(word, k); }
#endif

}  // namespace lgfast
