// Bilinear resizing along one axis as PyTorch does it with align_corners=False, for host and device.
#pragma once

#include <cstdint>

#include "common/host_device.h"

namespace lgfast {

// Output position = (1 - weight) * in[low] + weight * in[high]. Where low == high, weight is 0.
template <typename Acc>
struct Tap {
  int low, high;
  Acc weight;
};

// Tap of output position x in a resize from `in` positions; scale: in / out, of which 1 gives the identity exactly.
template <typename Acc>
LGFAST_HOST_DEVICE Tap<Acc> scaled_tap(int x, int in, Acc scale) {
  const Acc source = scale * (static_cast<Acc>(x) + Acc(0.5)) - Acc(0.5);
  if (source <= Acc(0)) return {0, 0, Acc(0)};
  const int low = static_cast<int>(source);
  if (low >= in - 1) return {in - 1, in - 1, Acc(0)};
  return {low, low + 1, source - static_cast<Acc>(low)};
}
template <typename Acc>
LGFAST_HOST_DEVICE Tap<Acc> bilinear_tap(int x, int in, int out) {
  return scaled_tap(x, in, static_cast<Acc>(in) / static_cast<Acc>(out));
}

// Returns the weight of input position i in the output position of this tap.
template <typename Acc>
LGFAST_HOST_DEVICE Acc tap_weight(const Tap<Acc>& tap, int i) {
  return (tap.low == i ? Acc(1) - tap.weight : Acc(0)) + (tap.high == i ? tap.weight : Acc(0));
}

// Output positions [begin, end) that can read input position i: those whose source lies in [i - 1, i + 1].
struct TapRange {
  int begin, end;
};
LGFAST_HOST_DEVICE TapRange tap_range(int i, int in, int out) {
  if (in == out) return {i, i + 1};
  const int low = (2 * i - 1) * out - in, high = (2 * i + 3) * out - in;  // source positions, times 2 * in
  const uint32_t unit = 2 * in;  // unsigned numbers are divided by fewer instructions
  const int end = uint32_t(high) / unit + 1;
  return {low > 0 ? int((low + unit - 1) / unit) : 0, end < out ? end : out};
}

}  // namespace lgfast
