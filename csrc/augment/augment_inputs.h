// From the ops' tensors to AugmentPlanParams and AugmentParams; shared by the CPU and the CUDA entry points.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <vector>

#include "augment/augment.h"
#include "augment/augment_policies.h"
#include "common/check.h"

namespace lgfast {

using torch::headeronly::ScalarType;

inline void check_vector(const char* op, const char* name, const torch::stable::Tensor& tensor, ScalarType dtype,
                         int64_t dim) {
  LGFAST_CHECK(tensor.scalar_type() == dtype && tensor.dim() == dim && tensor.is_contiguous(), op, name, " must be a ",
               "contiguous ", toString(dtype), " tensor with ", dim, " dimension(s), got ",
               toString(tensor.scalar_type()), " ", shape(tensor));
}

inline void check_sizes(const char* op, const torch::stable::Tensor& sizes) {
  check_vector(op, "sizes", sizes, ScalarType::Int, 2);
  LGFAST_CHECK(sizes.size(1) == 2, op, "sizes must hold (height, width) in each row, got ", shape(sizes));
}

inline void check_image_size(const char* op, int64_t image_size) {
  LGFAST_CHECK(image_size >= 1 && image_size <= kMaxImageSize, op, "image_size must be 1 to ", kMaxImageSize, ", got ",
               image_size);
}

// The plan's tensor, and parameters that point into it.
struct AugmentPlanCall {
  AugmentPlanParams params{};
  torch::stable::Tensor plan;
};

inline AugmentPlanCall augment_plan_call(const torch::stable::Tensor& sizes, const torch::stable::Tensor& indices,
                                         const torch::stable::Tensor& counter, int64_t image_size, bool whole_image,
                                         const std::vector<double>& crop_scale, const std::vector<double>& crop_ratio,
                                         double flip_prob, int64_t max_shift, double erase_prob, int64_t num_ops,
                                         double op_prob, double magnitude, double magnitude_std, double magnitude_max,
                                         bool increasing, double vertical_flip_prob, int64_t policy,
                                         const std::vector<double>& jitter) {
  constexpr const char* op = "augment_plan";
  check_sizes(op, sizes);
  check_vector(op, "indices", indices, ScalarType::Long, 1);
  check_vector(op, "counter", counter, ScalarType::Long, 1);
  check_image_size(op, image_size);
  check_same_device(op, "indices", indices, "sizes", sizes);
  check_same_device(op, "counter", counter, "sizes", sizes);
  LGFAST_CHECK(counter.size(0) == 2, op, "counter must hold seed and epoch, got ", shape(counter));
  LGFAST_CHECK(sizes.size(0) == indices.size(0), op, "sizes and indices must have one row per image, got ",
               shape(sizes), " and ", shape(indices));
  LGFAST_CHECK(crop_scale.size() == 2 && crop_ratio.size() == 2, op, "crop_scale and crop_ratio must have two values");
  LGFAST_CHECK(num_ops >= 0 && num_ops <= 8, op, "num_ops must be 0 to 8, got ", num_ops);
  LGFAST_CHECK(policy >= 0 && policy <= 2 && (policy == 0 || num_ops <= 1), op,
               "policy must be 0, 1 or 2, with at most one operation beyond 0, got ", policy, " with ", num_ops);
  LGFAST_CHECK(jitter.empty() || jitter.size() == kNumJitterOps, op, "jitter must have ", kNumJitterOps, " values");
  AugmentPlanCall call;
  std::copy(jitter.begin(), jitter.end(), call.params.jitter);
  const int64_t num_columns = kFirstOp + 2 * (num_ops + num_jitter_ops(call.params.jitter));
  call.plan = torch::stable::new_empty(sizes, {indices.size(0), num_columns}, ScalarType::Double);
  AugmentPlanParams& p = call.params;
  p.sizes = static_cast<const int32_t*>(sizes.const_data_ptr());
  p.indices = static_cast<const int64_t*>(indices.const_data_ptr());
  p.counter = static_cast<const int64_t*>(counter.const_data_ptr());
  p.plan = static_cast<double*>(call.plan.mutable_data_ptr());
  p.batch = indices.size(0);
  p.num_columns = static_cast<int>(num_columns);
  p.image_size = static_cast<int>(image_size);
  p.whole_image = whole_image;
  std::copy_n(crop_scale.begin(), 2, p.crop_scale);
  std::copy_n(crop_ratio.begin(), 2, p.crop_ratio);
  p.flip_prob = flip_prob;
  p.vertical_flip_prob = vertical_flip_prob;
  p.max_shift = static_cast<int>(max_shift);
  p.erase_prob = erase_prob;
  p.policy = static_cast<AugmentPolicy>(policy);
  p.num_ops = static_cast<int>(num_ops);
  p.op_prob = op_prob;
  p.magnitude = magnitude;
  p.magnitude_std = magnitude_std;
  p.magnitude_max = magnitude_max;
  p.increasing = increasing;
  return call;
}

// The outputs, and parameters that point into them and into the inputs.
struct AugmentCall {
  AugmentParams params{};
  AugmentDtype dtype{};
  torch::stable::Tensor images, teacher_images;
};

inline AugmentDtype augment_dtype(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float: return AugmentDtype::kFloat;
    case ScalarType::BFloat16: return AugmentDtype::kBFloat16;
    case ScalarType::Half: return AugmentDtype::kHalf;
    default: LGFAST_CHECK(false, "augment", "dtype must be float32, bfloat16 or float16, got ", toString(dtype));
  }
}

inline void check_augment_inputs(const torch::stable::Tensor& pixels, const torch::stable::Tensor& offsets,
                                 const torch::stable::Tensor& sizes, const torch::stable::Tensor& indices,
                                 const torch::stable::Tensor& plan) {
  constexpr const char* op = "augment";
  check_vector(op, "pixels", pixels, ScalarType::Byte, 1);
  check_vector(op, "offsets", offsets, ScalarType::Long, 1);
  check_sizes(op, sizes);
  check_vector(op, "indices", indices, ScalarType::Long, 1);
  check_vector(op, "plan", plan, ScalarType::Double, 2);
  check_same_device(op, "offsets", offsets, "pixels", pixels);
  check_same_device(op, "sizes", sizes, "pixels", pixels);
  check_same_device(op, "indices", indices, "pixels", pixels);
  check_same_device(op, "plan", plan, "pixels", pixels);
  LGFAST_CHECK(offsets.size(0) == sizes.size(0), op, "offsets and sizes must have one row per stored image, got ",
               shape(offsets), " and ", shape(sizes));
  LGFAST_CHECK(plan.size(0) == indices.size(0) && plan.size(1) >= kFirstOp && (plan.size(1) - kFirstOp) % 2 == 0, op,
               "plan must have one row per index and ", int(kFirstOp), " columns plus two per operation, got ",
               shape(plan), " for ", indices.size(0), " indices");
}

inline AugmentCall augment_call(const torch::stable::Tensor& pixels, const torch::stable::Tensor& offsets,
                                const torch::stable::Tensor& sizes, const torch::stable::Tensor& indices,
                                const torch::stable::Tensor& plan, int64_t image_size, int64_t teacher_size,
                                int64_t resample, int64_t erase_mode, const std::vector<int64_t>& fill,
                                const std::vector<double>& mean, const std::vector<double>& std, ScalarType dtype,
                                bool channels_last) {
  constexpr const char* op = "augment";
  check_augment_inputs(pixels, offsets, sizes, indices, plan);
  check_image_size(op, image_size);
  LGFAST_CHECK(teacher_size >= 0 && teacher_size <= image_size, op, "teacher_size must be 0 to image_size, got ",
               teacher_size);
  LGFAST_CHECK(resample >= 0 && resample <= 2 && erase_mode >= 0 && erase_mode <= 2, op,
               "resample and erase_mode must be 0, 1 or 2, got ", resample, " and ", erase_mode);
  LGFAST_CHECK(fill.size() == 3 && mean.size() == 3 && std.size() == 3, op, "fill, mean and std must have 3 values");
  AugmentCall call;
  call.dtype = augment_dtype(dtype);
  const int64_t batch = indices.size(0);
  const auto format =
      channels_last ? torch::headeronly::MemoryFormat::ChannelsLast : torch::headeronly::MemoryFormat::Contiguous;
  const auto allocate = [&](int64_t size) {
    return torch::stable::empty({batch, 3, size, size}, dtype, std::nullopt, pixels.device(), std::nullopt, format);
  };
  call.images = allocate(image_size);
  call.teacher_images = allocate(teacher_size);
  AugmentParams& p = call.params;
  p.pixels = static_cast<const uint8_t*>(pixels.const_data_ptr());
  p.offsets = static_cast<const int64_t*>(offsets.const_data_ptr());
  p.sizes = static_cast<const int32_t*>(sizes.const_data_ptr());
  p.indices = static_cast<const int64_t*>(indices.const_data_ptr());
  p.plan = static_cast<const double*>(plan.const_data_ptr());
  p.images = call.images.mutable_data_ptr();
  p.teacher = call.teacher_images.mutable_data_ptr();
  p.batch = batch;
  p.num_columns = static_cast<int>(plan.size(1));
  p.image_size = static_cast<int>(image_size);
  p.teacher_size = static_cast<int>(teacher_size);
  p.channel_stride = channels_last ? 1 : image_size * image_size;
  p.row_stride = channels_last ? 3 * image_size : image_size;
  p.column_stride = channels_last ? 3 : 1;
  p.teacher_channel_stride = channels_last ? 1 : teacher_size * teacher_size;
  p.teacher_row_stride = channels_last ? 3 * teacher_size : teacher_size;
  p.teacher_column_stride = channels_last ? 3 : 1;
  p.resample = static_cast<Resample>(resample);
  p.erase_mode = static_cast<EraseMode>(erase_mode);
  for (int c = 0; c < 3; ++c) {
    p.fill[c] = static_cast<int>(fill[c]);
    p.mean[c] = static_cast<float>(mean[c]);
    p.std[c] = static_cast<float>(std[c]);
  }
  return call;
}

}  // namespace lgfast
