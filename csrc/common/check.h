// Argument checks of the native ops. Every message names the op, the argument, what was expected and what came.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <sstream>
#include <string>

// LGFAST_CHECK(cond, "feature_mse", "student[0] must ...", value, ...)
#define LGFAST_CHECK(cond, op, ...) STD_TORCH_CHECK(cond, "lgfast::", op, ": ", __VA_ARGS__)

namespace lgfast {

// "[128, 196, 16]"
inline std::string shape(const torch::stable::Tensor& tensor) {
  std::ostringstream out;
  out << '[';
  for (int64_t i = 0; i < tensor.dim(); ++i) out << (i ? ", " : "") << tensor.size(i);
  out << ']';
  return out.str();
}

}  // namespace lgfast
