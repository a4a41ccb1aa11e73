// augment_plan and augment on the GPU, torch side: device guard, checks, allocation, launch on the current stream.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "augment/augment_inputs.h"
#include "common/cuda_stream.h"

namespace lgfast {
namespace {

using torch::stable::Tensor;

std::tuple<Tensor, Tensor> augment(const Tensor& pixels, const Tensor& offsets, const Tensor& sizes,
                                   const Tensor& indices, const Tensor& plan, int64_t image_size, int64_t teacher_size,
                                   int64_t resample, int64_t erase_mode, const std::vector<int64_t>& fill,
                                   const std::vector<double>& mean, const std::vector<double>& std, ScalarType dtype,
                                   bool channels_last) {
  LGFAST_CHECK(pixels.is_cuda(), "augment", "pixels must be on the GPU, like the other tensors; move it there");
  const int32_t device = pixels.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const AugmentCall call = augment_call(pixels, offsets, sizes, indices, plan, image_size, teacher_size, resample,
                                        erase_mode, fill, mean, std, dtype, channels_last);
  if (call.params.batch == 0) return {call.images, call.teacher_images};
  const AugmentLaunch launch = plan_augment(call.params, call.dtype);
  Tensor memory = torch::stable::new_empty(pixels, {launch.memory_bytes()}, ScalarType::Byte);
  const char* error =
      launch_augment(call.params, call.dtype, launch, memory.mutable_data_ptr(), current_cuda_stream(device));
  LGFAST_CHECK(!error, "augment", error);
  return {call.images, call.teacher_images};
}

Tensor augment_plan(const Tensor& sizes, const Tensor& indices, const Tensor& counter, int64_t image_size,
                    bool whole_image, const std::vector<double>& crop_scale, const std::vector<double>& crop_ratio,
                    double flip_prob, int64_t max_shift, double erase_prob, int64_t num_ops, double op_prob,
                    double magnitude, double magnitude_std, double magnitude_max, bool increasing,
                    double vertical_flip_prob, int64_t policy, const std::vector<double>& jitter) {
  LGFAST_CHECK(sizes.is_cuda(), "augment_plan", "sizes must be on the GPU, like the other tensors; move it there");
  const int32_t device = sizes.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const AugmentPlanCall call = augment_plan_call(
      sizes, indices, counter, image_size, whole_image, crop_scale, crop_ratio, flip_prob, max_shift, erase_prob,
      num_ops, op_prob, magnitude, magnitude_std, magnitude_max, increasing, vertical_flip_prob, policy, jitter);
  if (call.params.batch == 0) return call.plan;
  const char* error = launch_augment_plan(call.params, current_cuda_stream(device));
  LGFAST_CHECK(!error, "augment_plan", error);
  return call.plan;
}

}  // namespace
}  // namespace lgfast

STABLE_TORCH_LIBRARY_IMPL(lgfast, CUDA, m) {
  m.impl("augment_plan", TORCH_BOX(&lgfast::augment_plan));
  m.impl("augment", TORCH_BOX(&lgfast::augment));
}
