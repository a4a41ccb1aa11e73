// add_layer_norm on the GPU, torch side: device guard, checks, workspace, launches on the current stream.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "add_layer_norm/add_layer_norm_inputs.h"
#include "common/cuda_stream.h"
#include "common/dispatch.h"

namespace lgfast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

std::tuple<Tensor, Tensor, Tensor, Tensor> add_layer_norm_fwd(const Tensor& x, const Tensor& residual,
                                                              const Tensor& weight, const Tensor& bias,
                                                              const std::optional<Tensor>& drop_scale, double eps) {
  const int32_t device = x.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const auto in = add_layer_norm_fwd_inputs(x, residual, weight, bias, drop_scale, eps);
  const char* error = dispatch_float32("add_layer_norm", x.scalar_type(), [&](auto zero) {
    return launch_add_layer_norm_fwd<decltype(zero)>(in.params, current_cuda_stream(device));
  });
  LGFAST_CHECK(!error, "add_layer_norm", error);
  return in.outputs;
}

std::tuple<Tensor, Tensor, Tensor> add_layer_norm_bwd(const Tensor& dout, const std::optional<Tensor>& dy,
                                                      const Tensor& y, const Tensor& weight,
                                                      const std::optional<Tensor>& drop_scale, const Tensor& mean,
                                                      const Tensor& rstd) {
  const int32_t device = y.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  auto in = add_layer_norm_bwd_inputs(dout, dy, y, weight, drop_scale, mean, rstd);
  const AddLayerNormPlan plan = add_layer_norm_plan(in.params.shape.rows, in.params.shape.channels);
  Tensor partials = torch::stable::new_empty(y, {plan.blocks, 2 * in.params.shape.channels}, ScalarType::Float);
  in.params.partials = static_cast<float*>(partials.mutable_data_ptr());
  const char* error = dispatch_float32("add_layer_norm", y.scalar_type(), [&](auto zero) {
    return launch_add_layer_norm_bwd<decltype(zero)>(in.params, current_cuda_stream(device));
  });
  LGFAST_CHECK(!error, "add_layer_norm", error);
  return in.outputs;
}

}  // namespace
}  // namespace lgfast

STABLE_TORCH_LIBRARY_IMPL(lgfast, CUDA, m) {
  m.impl("add_layer_norm_fwd", TORCH_BOX(&lgfast::add_layer_norm_fwd));
  m.impl("add_layer_norm_bwd", TORCH_BOX(&lgfast::add_layer_norm_bwd));
}
