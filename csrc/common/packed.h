// Prepares tensors for kernels with 16-byte accesses.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>

namespace lgfast {

// Returns the tensor contiguous and on a 16-byte boundary; copies it where it is not (a slice may begin anywhere).
inline torch::stable::Tensor packed(const torch::stable::Tensor& tensor) {
  if (!tensor.is_contiguous()) return torch::stable::contiguous(tensor);
  const bool is_aligned = reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0;
  return is_aligned ? tensor : torch::stable::clone(tensor);
}

}  // namespace lgfast
