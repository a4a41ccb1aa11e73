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

inline std::string device_name(const torch::stable::Tensor& tensor) {
  if (tensor.is_cuda()) return "cuda:" + std::to_string(tensor.get_device_index());
  return tensor.is_cpu() ? "cpu" : "another device";
}

// A kernel reads every tensor in place, so a tensor on another device would be an illegal address.
inline void check_same_device(const char* op, const char* name, const torch::stable::Tensor& tensor,
                              const char* other_name, const torch::stable::Tensor& other) {
  LGFAST_CHECK(tensor.device() == other.device(), op, name, " must be on ", device_name(other), ", as ", other_name,
               ", got one on ", device_name(tensor), "; move it");
}

}  // namespace lgfast
