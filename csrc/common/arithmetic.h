// Integer arithmetic of plans and kernels.
#pragma once

#include "common/host_device.h"

namespace lgfast {

// Both take integers that are not negative, with b > 0.
template <typename A, typename B>
LGFAST_HOST_DEVICE constexpr auto ceil_div(A a, B b) {
  return (a + b - 1) / b;
}
template <typename A, typename B>
LGFAST_HOST_DEVICE constexpr auto round_up(A a, B b) {
  return ceil_div(a, b) * b;
}

LGFAST_HOST_DEVICE constexpr int smaller(int a, int b) { return a < b ? a : b; }

}  // namespace lgfast
