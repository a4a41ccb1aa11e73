// bias_gelu on the GPU, torch side: device guard, checks, workspace, launches on the current stream.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "bias_gelu/bias_gelu_inputs.h"
#include "common/cuda_stream.h"
#include "common/dispatch.h"

namespace lgfast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

Tensor bias_gelu_fwd(const Tensor& x, const Tensor& bias) {
  const int32_t device = x.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const BiasGeluInputs in = bias_gelu_inputs(x, bias, std::nullopt);
  const char* error = dispatch_float32("bias_gelu", x.scalar_type(), [&](auto zero) {
    return launch_bias_gelu_fwd<decltype(zero)>(in.params, current_cuda_stream(device));
  });
  LGFAST_CHECK(!error, "bias_gelu", error);
  return in.out;
}

std::tuple<Tensor, Tensor> bias_gelu_bwd(const Tensor& dout, const Tensor& x, const Tensor& bias) {
  const int32_t device = x.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  BiasGeluInputs in = bias_gelu_inputs(x, bias, dout);
  const BiasGeluPlan plan = bias_gelu_plan(in.params.rows, in.params.channels);
  Tensor partials = torch::stable::new_empty(x, {plan.row_blocks, in.params.channels}, ScalarType::Float);
  in.params.partials = static_cast<float*>(partials.mutable_data_ptr());
  const char* error = dispatch_float32("bias_gelu", x.scalar_type(), [&](auto zero) {
    return launch_bias_gelu_bwd<decltype(zero)>(in.params, current_cuda_stream(device));
  });
  LGFAST_CHECK(!error, "bias_gelu", error);
  return {in.out, in.dbias};
}

}  // namespace
}  // namespace lgfast

STABLE_TORCH_LIBRARY_IMPL(lgfast, CUDA, m) {
  m.impl("bias_gelu_fwd", TORCH_BOX(&lgfast::bias_gelu_fwd));
  m.impl("bias_gelu_bwd", TORCH_BOX(&lgfast::bias_gelu_bwd));
}
