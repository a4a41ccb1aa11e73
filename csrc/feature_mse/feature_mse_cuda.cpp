// feature_mse on the GPU, torch side: device guard, checks, allocation, params, launch on the current stream.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>

#include "common/cuda_stream.h"
#include "common/dispatch.h"
#include "common/gpu.h"
#include "common/packed.h"
#include "common/switches.h"
#include "feature_mse/feature_mse_inputs.h"

namespace lgfast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

FeatureMseParams feature_mse_params(const FeatureMseInputs& in, int element_bytes) {
  LGFAST_CHECK(in.pairs.size() <= kFeatureMseMaxPairs, "feature_mse", "at most ", kFeatureMseMaxPairs,
               " pairs on CUDA, got ", in.pairs.size());
  FeatureMseParams params{};
  params.num_pairs = static_cast<int>(in.pairs.size());
  std::copy(in.pairs.begin(), in.pairs.end(), params.pairs);
  const int max_smem = gpu_smem_bytes();
  LGFAST_CHECK(plan_feature_mse(params, in.batch, element_bytes, max_smem), "feature_mse",
               "one channel of the maps that are resized must fit in this GPU's shared memory, ", max_smem,
               " bytes a block, and a student be resized to at most ", kFeatureMseMostThreads,
               " columns; resize the maps first");
  return params;
}

std::tuple<Tensor, Tensor, Tensor> feature_mse_fwd(const std::vector<Tensor>& student,
                                                   const std::vector<Tensor>& teacher,
                                                   const std::vector<int64_t>& grids, double grad_scale,
                                                   const std::optional<Tensor>& weight) {
  LGFAST_CHECK(!student.empty(), "feature_mse", "student must list at least one map");
  const int32_t device = student[0].get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const FeatureMseInputs in = feature_mse_inputs(student, teacher, grids, grad_scale, weight);
  void* const stream = current_cuda_stream(device);
  FeatureMseParams params = feature_mse_params(in, static_cast<int>(student[0].element_size()));
  const int64_t num_partials = round_up(feature_mse_blocks(params), 2);
  Tensor partials = torch::stable::new_empty(student[0], {num_partials}, ScalarType::Double);
  params.partials = static_cast<double*>(partials.mutable_data_ptr());
  if (!is_switched_off("feature_mse_last_block")) params.counter = launch_counter(stream);
  params.scalars = {weight ? weight->const_data_ptr() : nullptr, in.loss.mutable_data_ptr(),
                    weight ? in.weighted.mutable_data_ptr() : nullptr};
  const char* error = dispatch_float("feature_mse", student[0].scalar_type(),
                                     [&](auto zero) { return launch_feature_mse_fwd<decltype(zero)>(params, stream); });
  LGFAST_CHECK(!error, "feature_mse", error);
  return {in.loss, in.grad, in.weighted};
}

Tensor feature_mse_bwd(const Tensor& dloss, const Tensor& grad, double scale) {
  const bool is_double = grad.scalar_type() == ScalarType::Double;
  LGFAST_CHECK(dloss.numel() == 1 && dloss.scalar_type() == (is_double ? ScalarType::Double : ScalarType::Float),
               "feature_mse", "dloss must be a scalar of the loss's dtype, got ", shape(dloss), " ",
               toString(dloss.scalar_type()));
  LGFAST_CHECK(grad.is_contiguous(), "feature_mse", "grad must be contiguous");
  LGFAST_CHECK(dloss.device() == grad.device(), "feature_mse", "dloss must be on grad's device");
  const int32_t device = grad.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const Tensor source = packed(grad);
  Tensor out = torch::stable::empty_like(grad);
  const char* error = dispatch_float("feature_mse", grad.scalar_type(), [&](auto zero) {
    return launch_feature_mse_bwd<decltype(zero)>(source.const_data_ptr(), dloss.const_data_ptr(),
                                                  out.mutable_data_ptr(), grad.numel(), scale,
                                                  current_cuda_stream(device));
  });
  LGFAST_CHECK(!error, "feature_mse", error);
  return out;
}

}  // namespace
}  // namespace lgfast

STABLE_TORCH_LIBRARY_IMPL(lgfast, CUDA, m) {
  m.impl("feature_mse_fwd", TORCH_BOX(&lgfast::feature_mse_fwd));
  m.impl("feature_mse_bwd", TORCH_BOX(&lgfast::feature_mse_bwd));
}
