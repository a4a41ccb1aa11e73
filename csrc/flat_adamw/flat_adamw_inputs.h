// Checks the op's tensors and turns them into FlatAdamWParams. The CPU and the CUDA entry points share it.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "common/arithmetic.h"
#include "common/check.h"
#include "flat_adamw/flat_adamw.h"

namespace lgfast {

struct FlatAdamWInputs {
  FlatAdamWParams shared{};          // everything but `tensors`
  FlatAdamWControlParams control{};  // everything but `counted`
  std::vector<FlatAdamWTensor> tensors;
  std::vector<FlatAdamWCounted> counted;
  std::vector<torch::stable::Tensor> kept;  // gradients that the pointers point into
  torch::headeronly::ScalarType grad_type;
};

inline void check_flat_buffer(const torch::stable::Tensor& buffer, const torch::stable::Tensor& params,
                              torch::headeronly::ScalarType dtype, const char* name) {
  LGFAST_CHECK(
      buffer.dim() == 1 && buffer.is_contiguous() && buffer.numel() == params.numel() && buffer.scalar_type() == dtype,
      "flat_adamw", name, " must be contiguous [", params.numel(), "] ", toString(dtype), ", got ", shape(buffer), " ",
      toString(buffer.scalar_type()));
  LGFAST_CHECK(reinterpret_cast<uintptr_t>(buffer.const_data_ptr()) % 16 == 0, "flat_adamw", name,
               " must begin on a 16-byte boundary, got a slice that does not; clone it");
  check_same_device("flat_adamw", name, buffer, "params", params);
}

inline void check_scalar(const torch::stable::Tensor& scalar, const torch::stable::Tensor& params,
                         torch::headeronly::ScalarType dtype, const char* name) {
  LGFAST_CHECK(scalar.numel() == 1 && scalar.scalar_type() == dtype, "flat_adamw", name, " must be one ",
               toString(dtype), ", got ", shape(scalar), " ", toString(scalar.scalar_type()));
  check_same_device("flat_adamw", name, scalar, "params", params);
}

inline LowType low_type(const torch::stable::Tensor& params, const std::optional<torch::stable::Tensor>& low) {
  using torch::headeronly::ScalarType;
  if (!low) return LowType::kNone;
  const bool is_bf16 = low->scalar_type() == ScalarType::BFloat16;
  check_flat_buffer(*low, params, is_bf16 ? ScalarType::BFloat16 : ScalarType::Half, "low");
  return is_bf16 ? LowType::kBFloat16 : LowType::kFloat16;
}

// Adds the gradients with their places, which must lie inside the buffers and on the alignment of vector accesses.
inline void add_flat_adamw_tensors(FlatAdamWInputs& in, const std::vector<std::optional<torch::stable::Tensor>>& grads,
                                   const std::vector<int64_t>& offsets, const std::vector<int64_t>& groups,
                                   const torch::stable::Tensor& params, int64_t num_groups) {
  constexpr const char* op = "flat_adamw";
  const int64_t total = params.numel();
  bool is_first = true;
  in.grad_type = torch::headeronly::ScalarType::Float;
  for (size_t k = 0; k < grads.size(); ++k) {
    LGFAST_CHECK(groups[k] >= 0 && groups[k] < num_groups, op, "groups[", k, "] must lie in [0, ", num_groups,
                 "), got ", groups[k]);
    if (!grads[k]) continue;
    const torch::stable::Tensor& grad = *grads[k];
    if (is_first) in.grad_type = grad.scalar_type();
    is_first = false;
    check_same_device(op, "every gradient", grad, "params", params);
    const int64_t numel = grad.numel();
    const int64_t padded = round_up(numel, kFlatAdamWAlign);
    LGFAST_CHECK(grad.scalar_type() == in.grad_type, op, "grads must share one dtype, got ", toString(in.grad_type),
                 " and ", toString(grad.scalar_type()), " at ", k);
    LGFAST_CHECK(offsets[k] >= 0 && offsets[k] % kFlatAdamWAlign == 0 && offsets[k] + padded <= total, op, "offsets[",
                 k, "] must be a multiple of ", kFlatAdamWAlign, " that leaves room for ", padded,
                 " elements in params [", total, "], got ", offsets[k]);
    LGFAST_CHECK(numel <= kFlatAdamWMaxNumel, op, "a gradient must have at most ", kFlatAdamWMaxNumel,
                 " elements, got ", numel, "; split its parameter");
    in.kept.push_back(grad.is_contiguous() ? grad : torch::stable::contiguous(grad));
    in.tensors.push_back({in.kept.back().const_data_ptr(), static_cast<uint32_t>(offsets[k] / kFlatAdamWAlign),
                          static_cast<int>(numel)});
    in.counted.push_back({static_cast<int>(k), static_cast<int>(groups[k])});
  }
}

inline FlatAdamWInputs flat_adamw_inputs(torch::stable::Tensor params, torch::stable::Tensor exp_avg,
                                         torch::stable::Tensor exp_avg_sq, std::optional<torch::stable::Tensor> low,
                                         torch::stable::Tensor steps, torch::stable::Tensor num_skipped,
                                         const std::vector<std::optional<torch::stable::Tensor>>& grads,
                                         const std::vector<int64_t>& offsets, const std::vector<int64_t>& groups,
                                         const torch::stable::Tensor& hyperparameters,
                                         const std::optional<torch::stable::Tensor>& loss_scale,
                                         const std::optional<torch::stable::Tensor>& found_inf, double max_norm,
                                         bool skip_nonfinite) {
  using torch::headeronly::ScalarType;
  constexpr const char* op = "flat_adamw";
  check_flat_buffer(params, params, ScalarType::Float, "params");
  check_flat_buffer(exp_avg, params, ScalarType::Float, "exp_avg");
  check_flat_buffer(exp_avg_sq, params, ScalarType::Float, "exp_avg_sq");
  check_scalar(num_skipped, params, ScalarType::Long, "num_skipped");
  if (loss_scale) check_scalar(*loss_scale, params, ScalarType::Float, "loss_scale");
  if (found_inf) check_scalar(*found_inf, params, ScalarType::Float, "found_inf");
  LGFAST_CHECK(params.numel() / kFlatAdamWAlign <= int64_t{UINT32_MAX}, op, "params is too large, got ",
               params.numel());
  LGFAST_CHECK(grads.size() == offsets.size() && grads.size() == groups.size(), op,
               "grads, offsets and groups must have the same length, got ", grads.size(), ", ", offsets.size(), " and ",
               groups.size());
  LGFAST_CHECK(steps.dim() == 1 && steps.is_contiguous() && steps.scalar_type() == ScalarType::Float &&
                   steps.numel() == static_cast<int64_t>(grads.size()),
               op, "steps must be contiguous [", grads.size(), "] Float, one per gradient, got ", shape(steps), " ",
               toString(steps.scalar_type()));
  check_same_device(op, "steps", steps, "params", params);
  LGFAST_CHECK(hyperparameters.dim() == 2 && hyperparameters.is_contiguous() &&
                   hyperparameters.size(1) == kNumHyperparameters &&
                   hyperparameters.scalar_type() == ScalarType::Double,
               op, "hyperparameters must be contiguous [G, ", int{kNumHyperparameters}, "] Double, got ",
               shape(hyperparameters), " ", toString(hyperparameters.scalar_type()));
  check_same_device(op, "hyperparameters", hyperparameters, "params", params);
  FlatAdamWInputs in;
  add_flat_adamw_tensors(in, grads, offsets, groups, params, hyperparameters.size(0));
  FlatAdamWParams& p = in.shared;
  p.params = static_cast<float*>(params.mutable_data_ptr());
  p.exp_avg = static_cast<float*>(exp_avg.mutable_data_ptr());
  p.exp_avg_sq = static_cast<float*>(exp_avg_sq.mutable_data_ptr());
  p.low = low ? low->mutable_data_ptr() : nullptr;
  p.low_type = low_type(params, low);
  FlatAdamWControlParams& c = in.control;
  c.loss_scale = loss_scale ? static_cast<const float*>(loss_scale->const_data_ptr()) : nullptr;
  c.found_inf = found_inf ? static_cast<const float*>(found_inf->const_data_ptr()) : nullptr;
  c.hyperparameters = static_cast<const double*>(hyperparameters.const_data_ptr());
  c.steps = static_cast<float*>(steps.mutable_data_ptr());
  c.num_skipped = static_cast<int64_t*>(num_skipped.mutable_data_ptr());
  c.max_norm = max_norm;
  c.skip_nonfinite = skip_nonfinite;
  return in;
}

}  // namespace lgfast
