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

// The launches of update, each of at most kFlatAdamWMaxTensors gradients. The partial sums of launch k begin at
// first_partial[k].
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
    params.factors = in.control.factors + begin;
    launches.first_partial.push_back(launches.num_blocks);
    launches.num_blocks += plan_flat_adamw(params);
    launches.params.push_back(params);
  }
  return launches;
}

// Launches control once for every kFlatAdamWMaxCounted gradients. Without gradients it launches once, since a skipped
// step is counted too.
const char* launch_control(const FlatAdamWInputs& in, void* stream) {
  FlatAdamWControlParams params = in.control;
  const char* error = nullptr;
  size_t begin = 0;
  do {
    const size_t end = std::min(begin + kFlatAdamWMaxCounted, in.counted.size());
    std::copy(in.counted.begin() + begin, in.counted.begin() + end, params.counted);
    params.num_counted = static_cast<int>(end - begin);
    params.is_first = begin == 0;
    params.factors = in.control.factors + begin;
    error = launch_flat_adamw_control(params, stream);
    begin = end;
  } while (begin < in.counted.size() && !error);
  return error;
}

template <typename T>
const char* run(FlatAdamWInputs& in, const Tensor& like, void* stream) {
  const auto num_bytes = static_cast<int64_t>(sizeof(FlatAdamWControl) + in.tensors.size() * sizeof(AdamWFactors));
  Tensor workspace = torch::stable::new_empty(like, {num_bytes}, ScalarType::Byte);
  auto* control = static_cast<FlatAdamWControl*>(workspace.mutable_data_ptr());
  in.shared.control = in.control.control = control;
  in.control.factors = reinterpret_cast<AdamWFactors*>(control + 1);
  Launches launches = split_launches(in);
  const bool wants_norm = in.control.max_norm > 0 || in.control.skip_nonfinite;
  in.control.num_partials = wants_norm ? launches.num_blocks : 0;
  Tensor partials = torch::stable::new_empty(like, {in.control.num_partials}, ScalarType::Double);
  auto* first = static_cast<double*>(partials.mutable_data_ptr());
  in.control.partials = first;
  const char* error = nullptr;
  for (size_t k = 0; k < launches.params.size() && wants_norm && !error; ++k) {
    launches.params[k].partials = first + launches.first_partial[k];
    error = launch_flat_adamw_norm<T>(launches.params[k], stream);
  }
  if (!error) error = launch_control(in, stream);
  for (size_t k = 0; k < launches.params.size() && !error; ++k)
    error = launch_flat_adamw<T>(launches.params[k], stream);
  return error;
}

void flat_adamw(Tensor params, Tensor exp_avg, Tensor exp_avg_sq, std::optional<Tensor> low, Tensor steps,
                Tensor num_skipped, const std::vector<std::optional<Tensor>>& grads,
                const std::vector<int64_t>& offsets, const std::vector<int64_t>& groups, const Tensor& hyperparameters,
                const std::optional<Tensor>& loss_scale, const std::optional<Tensor>& found_inf, double max_norm,
                bool skip_nonfinite) {
  const int32_t device = params.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  FlatAdamWInputs in = flat_adamw_inputs(params, exp_avg, exp_avg_sq, low, steps, num_skipped, grads, offsets, groups,
                                         hyperparameters, loss_scale, found_inf, max_norm, skip_nonfinite);
  const char* error = dispatch_float32("flat_adamw", in.grad_type, [&](auto zero) {
    return run<decltype(zero)>(in, params, current_cuda_stream(device));
  });
  LGFAST_CHECK(!error, "flat_adamw", error);
}

}  // namespace
}  // namespace lgfast

STABLE_TORCH_LIBRARY_IMPL(lgfast, CUDA, m) { m.impl("flat_adamw", TORCH_BOX(&lgfast::flat_adamw)); }
