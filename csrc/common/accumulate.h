// The type that kernels compute in for a stored element type: double for double, float for all others. Conversions
// round to nearest even.
#pragma once

#include "common/float16.h"

namespace lgfast {

template <typename T>
struct Accumulate {
  using type = float;
  LGFAST_HOST_DEVICE static float load(T value) { return to_float(value); }
  LGFAST_HOST_DEVICE static T store(float value) { return from_float<T>(value); }
};

template <>
struct Accumulate<double> {
  using type = double;
  LGFAST_HOST_DEVICE static double load(double value) { return value; }
  LGFAST_HOST_DEVICE static double store(double value) { return value; }
};

}  // namespace lgfast
