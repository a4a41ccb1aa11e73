// From the op's tensors to FlatAdamWParams; shared by the CPU and the CUDA entry point.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "common/check.h"
#include "flat_adamw/flat_adamw.h"

namespace lgfast {

struct FlatAdamWInputs {
  FlatAdamWParams shared{};  // everything but the tensors
  FlatAdamWControlParams control{};
  std::vector<FlatAdamWTensor> tensors;
  std::vector<torch::stable::Tensor> kept;  // gradients the pointers lead into
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

// Gradients with their places; they must lie inside the buffers and on the alignment of vector accesses.
inline void add_flat_adamw_tensors(FlatAdamWInputs& in, const std::vector<torch::stable::Tensor>& grads,
                                   const std::vector<int64_t>& offsets, const std::vector<int64_t>& groups,
                                   const torch::stable::Tensor& params, size_t num_groups) {
  constexpr const char* op = "flat_adamw";
  LGFAST_CHECK(grads.size() == offsets.size() && grads.size() == groups.size(), op,
               "grads, offsets and groups must have the same length, got ", grads.size(), ", ", offsets.size(), " and ",
               groups.size());
  const int64_t total = params.numel();
  for (size_t k = 0; k < grads.size(); ++k) {
    check_same_device(op, "every gradient", grads[k], "params", params);
    const int64_t numel = grads[k].numel();
    const int64_t padded = (numel + kFlatAdamWAlign - 1) / kFlatAdamWAlign * kFlatAdamWAlign;
    LGFAST_CHECK(grads[k].scalar_type() == grads[0].scalar_type(), op, "grads must share one dtype, got ",
                 toString(grads[0].scalar_type()), " and ", toString(grads[k].scalar_type()), " at ", k);
    LGFAST_CHECK(offsets[k] >= 0 && offsets[k] % kFlatAdamWAlign == 0 && offsets[k] + padded <= total, op, "offsets[",
                 k, "] must be a multiple of ", kFlatAdamWAlign, " that leaves room for ", padded,
                 " elements in params [", total, "], got ", offsets[k]);
    LGFAST_CHECK(groups[k] >= 0 && groups[k] < static_cast<int64_t>(num_groups), op, "groups[", k, "] must lie in [0, ",
                 num_groups, "), got ", groups[k]);
    LGFAST_CHECK(numel <= kFlatAdamWMaxNumel, op, "a gradient must have at most ", kFlatAdamWMaxNumel,
                 " elements, got ", numel, "; split its parameter");
    in.kept.push_back(grads[k].is_contiguous() ? grads[k] : torch::stable::contiguous(grads[k]));
    in.tensors.push_back(
        {in.kept.back().const_data_ptr(), offsets[k], static_cast<int>(numel), static_cast<int>(groups[k])});
  }
}

inline FlatAdamWInputs flat_adamw_inputs(torch::stable::Tensor params, torch::stable::Tensor exp_avg,
                                         torch::stable::Tensor exp_avg_sq, std::optional<torch::stable::Tensor> low,
                                         const std::vector<torch::stable::Tensor>& grads,
                                         const std::vector<int64_t>& offsets, const std::vector<int64_t>& groups,
                                         const torch::stable::Tensor& lr, const std::vector<double>& weight_decay,
                                         torch::stable::Tensor step, torch::stable::Tensor num_skipped,
                                         const std::optional<torch::stable::Tensor>& loss_scale, double beta1,
                                         double beta2, double eps, double max_norm, bool skip_nonfinite) {
  using torch::headeronly::ScalarType;
  constexpr const char* op = "flat_adamw";
  check_flat_buffer(params, params, ScalarType::Float, "params");
  check_flat_buffer(exp_avg, params, ScalarType::Float, "exp_avg");
  check_flat_buffer(exp_avg_sq, params, ScalarType::Float, "exp_avg_sq");
  check_scalar(step, params, ScalarType::Float, "step");
  check_scalar(num_skipped, params, ScalarType::Long, "num_skipped");
  if (loss_scale) check_scalar(*loss_scale, params, ScalarType::Float, "loss_scale");
  check_same_device(op, "lr", lr, "params", params);
  LGFAST_CHECK(!weight_decay.empty() && weight_decay.size() <= kFlatAdamWMaxGroups, op, "weight_decay must list 1 to ",
               kFlatAdamWMaxGroups, " groups, got ", weight_decay.size());
  LGFAST_CHECK(lr.dim() == 1 && lr.is_contiguous() && lr.scalar_type() == ScalarType::Float &&
                   lr.numel() == static_cast<int64_t>(weight_decay.size()),
               op, "lr must be contiguous [", weight_decay.size(), "] Float, one per group, got ", shape(lr), " ",
               toString(lr.scalar_type()));
  FlatAdamWInputs in;
  in.grad_type = grads.empty() ? ScalarType::Float : grads[0].scalar_type();
  add_flat_adamw_tensors(in, grads, offsets, groups, params, weight_decay.size());
  FlatAdamWParams& p = in.shared;
  std::copy(weight_decay.begin(), weight_decay.end(), p.weight_decay);
  p.lr = static_cast<const float*>(lr.const_data_ptr());
  p.params = static_cast<float*>(params.mutable_data_ptr());
  p.exp_avg = static_cast<float*>(exp_avg.mutable_data_ptr());
  p.exp_avg_sq = static_cast<float*>(exp_avg_sq.mutable_data_ptr());
  p.low = low ? low->mutable_data_ptr() : nullptr;
  p.low_type = low_type(params, low);
  p.beta1 = beta1;
  p.beta2 = beta2;
  p.eps = static_cast<float>(eps);
  FlatAdamWControlParams& c = in.control;
  c.loss_scale = loss_scale ? static_cast<const float*>(loss_scale->const_data_ptr()) : nullptr;
  c.step = static_cast<float*>(step.mutable_data_ptr());
  c.num_skipped = static_cast<int64_t*>(num_skipped.mutable_data_ptr());
  c.beta1 = beta1;
  c.beta2 = beta2;
  c.max_norm = max_norm;
  c.skip_nonfinite = skip_nonfinite;
  return in;
}

}  // namespace lgfast
