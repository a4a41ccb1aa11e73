// From the op's tensors to FeatureMsePair; shared by the CPU and the CUDA entry point.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <vector>

#include "common/check.h"
#include "feature_mse/feature_mse.h"

namespace lgfast {

struct FeatureMseInputs {
  std::vector<FeatureMsePair> pairs;
  std::vector<torch::stable::Tensor> kept;  // tensors the pairs point into
  torch::stable::Tensor grad;               // flat; empty where no gradient is wanted
  torch::stable::Tensor loss, weighted;     // scalars; weighted is empty where there is no weight
  int64_t batch = 0;
};

inline void check_feature_mse_pair(const torch::stable::Tensor& student, const torch::stable::Tensor& teacher,
                                   const torch::stable::Tensor& first, size_t k, int64_t h, int64_t w) {
  constexpr const char* op = "feature_mse";
  LGFAST_CHECK(student.dim() == 3, op, "student[", k, "] must be [B, h*w, C], got ", shape(student));
  LGFAST_CHECK(teacher.dim() == 4, op, "teacher[", k, "] must be [B, C, h, w], got ", shape(teacher));
  LGFAST_CHECK(h > 0 && w > 0 && student.size(1) == h * w, op, "student[", k, "] must have ", h, "*", w,
               " tokens, got ", shape(student));
  LGFAST_CHECK(student.size(0) == first.size(0) && teacher.size(0) == first.size(0), op,
               "every map must have the batch size of student[0], ", first.size(0), ", got ", shape(student), " and ",
               shape(teacher), " at ", k);
  LGFAST_CHECK(student.size(2) == teacher.size(1), op, "student[", k, "] and teacher[", k,
               "] must have the same number of channels, got ", shape(student), " and ", shape(teacher));
  LGFAST_CHECK(student.size(2) > 0 && teacher.size(2) > 0 && teacher.size(3) > 0, op, "maps must not be empty, got ",
               shape(student), " and ", shape(teacher), " at ", k);
  check_same_device(op, "every map", student, "student[0]", first);
  check_same_device(op, "every map", teacher, "student[0]", first);
  LGFAST_CHECK(student.scalar_type() == first.scalar_type() && teacher.scalar_type() == first.scalar_type(), op,
               "every map must have the dtype of student[0], ", toString(first.scalar_type()), ", got ",
               toString(student.scalar_type()), " and ", toString(teacher.scalar_type()), " at ", k);
}

inline FeatureMsePair feature_mse_pair(const torch::stable::Tensor& student, const torch::stable::Tensor& teacher,
                                       int64_t h, int64_t w, double grad_scale) {
  FeatureMsePair p{};
  p.student = student.const_data_ptr();
  p.teacher = teacher.const_data_ptr();
  p.channels = static_cast<int>(student.size(2));
  p.student_h = static_cast<int>(h);
  p.student_w = static_cast<int>(w);
  p.teacher_h = static_cast<int>(teacher.size(2));
  p.teacher_w = static_cast<int>(teacher.size(3));
  p.student_image_stride = student.stride(0);
  p.student_token_stride = student.stride(1);
  p.teacher_image_stride = teacher.stride(0);
  p.teacher_row_stride = teacher.stride(2);
  p.teacher_column_stride = teacher.stride(3);
  complete_feature_mse_pair(p, student.size(0), grad_scale);
  return p;
}

// Checks every argument, makes channels contiguous where they are not, allocates the results.
inline FeatureMseInputs feature_mse_inputs(const std::vector<torch::stable::Tensor>& student,
                                           const std::vector<torch::stable::Tensor>& teacher,
                                           const std::vector<int64_t>& grids, double grad_scale,
                                           const std::optional<torch::stable::Tensor>& weight) {
  using torch::headeronly::MemoryFormat;
  using torch::headeronly::ScalarType;
  LGFAST_CHECK(!student.empty() && student.size() == teacher.size() && grids.size() == 2 * student.size(),
               "feature_mse", "student, teacher and grids must list the same pairs, at least one, got ", student.size(),
               ", ", teacher.size(), " and ", grids.size(), " / 2");
  FeatureMseInputs in;
  int64_t grad_numel = 0;
  for (size_t k = 0; k < student.size(); ++k) {
    const int64_t h = grids[2 * k], w = grids[2 * k + 1];
    check_feature_mse_pair(student[k], teacher[k], student[0], k, h, w);
    const bool dense_s = student[k].stride(2) == 1, dense_t = teacher[k].stride(1) == 1;
    in.kept.push_back(dense_s ? student[k] : contiguous(student[k]));
    in.kept.push_back(dense_t ? teacher[k] : contiguous(teacher[k], MemoryFormat::ChannelsLast));
    in.pairs.push_back(feature_mse_pair(in.kept[2 * k], in.kept[2 * k + 1], h, w, grad_scale));
    grad_numel += student[k].numel();
  }
  in.batch = student[0].size(0);
  in.grad = torch::stable::new_empty(student[0], {grad_scale == 0.0 ? 0 : grad_numel});
  char* grad = static_cast<char*>(in.grad.mutable_data_ptr());
  for (size_t k = 0; k < student.size() && grad_scale != 0.0; ++k) {
    in.pairs[k].grad = grad;
    grad += student[k].numel() * student[k].element_size();
  }
  const ScalarType loss_type = student[0].scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  in.loss = torch::stable::new_empty(student[0], {}, loss_type);
  const std::vector<int64_t> one, none{0};
  in.weighted = torch::stable::new_empty(student[0], weight ? one : none, loss_type);
  if (weight) {
    LGFAST_CHECK(weight->numel() == 1 && weight->scalar_type() == loss_type, "feature_mse",
                 "weight must be a scalar of the loss's dtype, ", toString(loss_type), ", got ", shape(*weight), " ",
                 toString(weight->scalar_type()));
    check_same_device("feature_mse", "weight", *weight, "student[0]", student[0]);
  }
  return in;
}

}  // namespace lgfast
