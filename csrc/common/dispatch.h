// Turns values known at run time into template arguments. A value outside the list raises an error.
#pragma once

#include <torch/headeronly/core/ScalarType.h>

#include "common/check.h"
#include "common/float16.h"

namespace lgfast {

// Calls f(T{}), where T is the element type, and returns its result.
template <typename F>
auto dispatch_float(const char* op, torch::headeronly::ScalarType dtype, const F& f) {
  using torch::headeronly::ScalarType;
  switch (dtype) {
    case ScalarType::Float: return f(float{});
    case ScalarType::Double: return f(double{});
    case ScalarType::BFloat16: return f(bf16{});
    case ScalarType::Half: return f(fp16{});
    default:
      LGFAST_CHECK(false, op, "dtype must be float32, float64, bfloat16 or float16, got ",
                   torch::headeronly::toString(dtype));
  }
}

// The same for ops that compute in float32 and take no double.
template <typename F>
auto dispatch_float32(const char* op, torch::headeronly::ScalarType dtype, const F& f) {
  using torch::headeronly::ScalarType;
  switch (dtype) {
    case ScalarType::Float: return f(float{});
    case ScalarType::BFloat16: return f(bf16{});
    case ScalarType::Half: return f(fp16{});
    default:
      LGFAST_CHECK(false, op, "dtype must be float32, bfloat16 or float16, got ", torch::headeronly::toString(dtype));
  }
}

}  // namespace lgfast
