// Bilinear resizing along one axis as PyTorch does it with align_corners=False, for host and device.
#pragma once

#include "common/float16.h"  // LGFAST_HOST_DEVICE

namespace lgfast {

// Output position = (1 - weight) * in[low] + weight * in[high].
template <typename Acc>
struct Tap {
  int low, high;
  Acc weight;  // of high
};

// Tap of output position x in a resize from `in` to `out` positions. out == in gives the identity exactly.
template <typename Acc>
LGFAST_HOST_DEVICE Tap<Acc> bilinear_tap(int x, int in, int out) {
  const Acc scale = static_cast<Acc>(in) / static_cast<Acc>(out);
  Acc source = scale * (static_cast<Acc>(x) + Acc(0.5)) - Acc(0.5);
  if (source < Acc(0)) source = Acc(0);
  int low = static_cast<int>(source);
  if (low > in - 1) low = in - 1;
  const int high = low < in - 1 ? low + 1 : low;
  return {low, high, source - static_cast<Acc>(low)};
}

}  // namespace lgfast
