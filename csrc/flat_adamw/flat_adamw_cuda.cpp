// flat_adamw on the GPU, torch side: device guard, checks, workspace, launches on the current stream.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "common/cuda_stream.h"
#include "common/dispatch.h"
#include "flat_adamw/flat_adamw_inputs.h"

namespace lgfast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The launches: kFlatAdamWMaxTensors gradients each, with the block number at which each one's partials begin.
struct Launches {
  std::vector<FlatAdamWParams> params;
  std::vector<int> first_partial;
  int num_blocks = 0;
};

Launches split_launches(const FlatAdamWInputs& in) {
  Launches launches;
  for (size_t begin = 0; begin < in.tensors.size(); begin += kFlatAdamWMaxTensors) {
    const size_t end = std::min(begin + kFlatAdamWMaxTensors, in.tensors.size());
    FlatAdamWParams params = in.shared;
    std::copy(in.tensors.begin() + begin, in.tensors.begin() + end, params.tensors);
    params.num_tensors = static_cast<int>(end - begin);
    launches.first_partial.push_back(launches.num_blocks);
    launches.num_blocks += plan_flat_adamw(params);
    launches.params.push_back(params);
  }
  return launches;
}

template <typename T>
const char* run(FlatAdamWInputs& in, const Tensor& like, void* stream) {
  Launches launches = split_launches(in);
  const bool wants_norm = in.control.max_norm > 0 || in.control.skip_nonfinite;
  const int num_partials = wants_norm ? launches.num_blocks : 0;
  Tensor partials = torch::stable::new_empty(like, {num_partials}, ScalarType::Double);
  Tensor control = torch::stable::new_empty(like, {static_cast<int64_t>(sizeof(FlatAdamWControl) / sizeof(float))});
  in.control.control = static_cast<FlatAdamWControl*>(control.mutable_data_ptr());
  in.control.partials = static_cast<double*>(partials.mutable_data_ptr());
  in.control.num_partials = num_partials;
  const char* error = nullptr;
  for (size_t k = 0; k < launches.params.size() && !error; ++k) {
    FlatAdamWParams& params = launches.params[k];
    params.control = in.control.control;
    params.partials = static_cast<double*>(partials.mutable_data_ptr()) + launches.first_partial[k];
    if (wants_norm) error = launch_flat_adamw_norm<T>(params, stream);
  }
  if (!error) error = launch_flat_adamw_control(in.control, stream);
  for (size_t k = 0; k < launches.params.size() && !error; ++k)
    error = launch_flat_adamw<T>(launches.params[k], stream);
  return error;
}

void flat_adamw(Tensor params, Tensor exp_avg, Tensor exp_avg_sq, std::optional<Tensor> low,
                const std::vector<Tensor>& grads, const std::vector<int64_t>& offsets,
                const std::vector<int64_t>& groups, const Tensor& lr, const std::vector<double>& weight_decay,
                Tensor step, Tensor num_skipped, const std::optional<Tensor>& loss_scale, double beta1, double beta2,
                double eps, double max_norm, bool skip_nonfinite) {
  const int32_t device = params.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  FlatAdamWInputs in = flat_adamw_inputs(params, exp_avg, exp_avg_sq, low, grads, offsets, groups, lr, weight_decay,
                                         step, num_skipped, loss_scale, beta1, beta2, eps, max_norm, skip_nonfinite);
  const char* error = dispatch_float32("flat_adamw", in.grad_type, [&](auto zero) {
    return run<decltype(zero)>(in, params, current_cuda_stream(device));
  });
  LGFAST_CHECK(!error, "flat_adamw", error);
}

}  // namespace
}  // namespace lgfast

STABLE_TORCH_LIBRARY_IMPL(lgfast, CUDA, m) { m.impl("flat_adamw", TORCH_BOX(&lgfast::flat_adamw)); }
