// Parameters, work split, arithmetic and launchers of flat_adamw; no torch types.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/host_device.h"

namespace lgfast {

constexpr int kFlatAdamWMaxTensors = 96;  // gradients of one launch; kernel parameters hold them all
constexpr int kFlatAdamWMaxGroups = 16;
constexpr int64_t kFlatAdamWMaxNumel = int64_t{1}
                                       << 30;  // of a gradient: indices of elements, and a block's beyond, are int
constexpr int kFlatAdamWAlign = 8;             // offsets are multiples of it: 16 bytes of any type
constexpr int kFlatAdamWThreads = 256;
constexpr int kFlatAdamWChunk = 8 * kFlatAdamWThreads;  // elements of a block

// One gradient and its place in the flat buffers.
struct FlatAdamWTensor {
  const void* grad;  // [numel], contiguous
  int64_t offset;
  int numel;
  int group;
};

// What one step shares between all elements; on the GPU it lives in device memory, so no value returns to the host.
struct FlatAdamWControl {
  float grad_scale;  // 1 / loss scale, times the clip factor
  float inv_bias_correction1;
  float inv_sqrt_bias_correction2;
  int skip;  // a gradient is not finite: leave everything as it is
};

enum class LowType : int { kNone, kBFloat16, kFloat16 };

struct FlatAdamWParams {
  FlatAdamWTensor tensors[kFlatAdamWMaxTensors];
  int first_block[kFlatAdamWMaxTensors + 1];  // tensor k owns blocks [first_block[k], first_block[k + 1])
  int num_tensors;
  float weight_decay[kFlatAdamWMaxGroups];
  const float* lr;  // [groups]
  float* params;    // [total], as the two moments
  float* exp_avg;
  float* exp_avg_sq;
  void* low;  // [total] copy in 16 bits, or nullptr
  LowType low_type;
  double beta1, beta2;
  float eps;
  const FlatAdamWControl* control;
  double* partials;  // sum of squares of each block, from block 0 of this launch on
};

// What turns gradients into control.
struct FlatAdamWControlParams {
  const double* partials;  // [num_partials]
  int num_partials;
  const float* loss_scale;  // scalar, or nullptr: 1
  float* step;              // scalar, steps taken
  int64_t* num_skipped;     // scalar
  double beta1, beta2;
  double max_norm;  // 0: no clipping
  bool skip_nonfinite;
  FlatAdamWControl* control;
};

// The control of this step from the sum of squared gradients; counts the step or the skip.
LGFAST_HOST_DEVICE FlatAdamWControl flat_adamw_control(double sum_of_squares, const FlatAdamWControlParams& p) {
  FlatAdamWControl control{};
  const bool is_finite = sum_of_squares - sum_of_squares == 0.0;
  control.skip = p.skip_nonfinite && !is_finite;
  if (control.skip) {
    *p.num_skipped += 1;
    return control;
  }
  const double step = *p.step + 1.0;
  *p.step = static_cast<float>(step);
  const double inv_scale = p.loss_scale ? 1.0 / *p.loss_scale : 1.0;
  double factor = inv_scale;
  if (p.max_norm > 0) {
    const double clip = p.max_norm / (sqrt(sum_of_squares) * inv_scale + 1e-6);  // as torch's clip_grad_norm_
    if (!(clip >= 1.0)) factor *= clip;
  }
  control.grad_scale = static_cast<float>(factor);
  control.inv_bias_correction1 = static_cast<float>(1.0 / (1.0 - pow(p.beta1, step)));
  control.inv_sqrt_bias_correction2 = static_cast<float>(1.0 / sqrt(1.0 - pow(p.beta2, step)));
  return control;
}

// The constants of a group's elements in one step.
struct AdamWFactors {
  float grad_scale, one_minus_beta1, beta2, one_minus_beta2;
  float decay;      // 1 - lr * weight_decay
  float step_size;  // lr / bias_correction1
  float inv_sqrt_bias_correction2, eps;
};

LGFAST_HOST_DEVICE AdamWFactors adamw_factors(const FlatAdamWControl& control, const FlatAdamWParams& p, int group) {
  const float lr = p.lr[group];
  return {control.grad_scale,
          static_cast<float>(1.0 - p.beta1),
          static_cast<float>(p.beta2),
          static_cast<float>(1.0 - p.beta2),
          1.0f - lr * p.weight_decay[group],
          lr * control.inv_bias_correction1,
          control.inv_sqrt_bias_correction2,
          p.eps};
}

// One element of AdamW (Loshchilov and Hutter, ICLR 2019), in float32.
LGFAST_HOST_DEVICE void adamw_update(float& param, float& exp_avg, float& exp_avg_sq, float grad,
                                     const AdamWFactors& f) {
  grad *= f.grad_scale;
  exp_avg += (grad - exp_avg) * f.one_minus_beta1;
  exp_avg_sq = exp_avg_sq * f.beta2 + grad * grad * f.one_minus_beta2;
  param = param * f.decay - f.step_size * exp_avg / (sqrtf(exp_avg_sq) * f.inv_sqrt_bias_correction2 + f.eps);
}

// Splits a launch's tensors over blocks of kFlatAdamWChunk elements; returns the number of blocks.
inline int plan_flat_adamw(FlatAdamWParams& params) {
  params.first_block[0] = 0;
  for (int k = 0; k < params.num_tensors; ++k) {
    const int numel = params.tensors[k].numel;
    const int blocks = numel / kFlatAdamWChunk + (numel % kFlatAdamWChunk > 0 ? 1 : 0);
    params.first_block[k + 1] = params.first_block[k] + blocks;
  }
  return params.first_block[params.num_tensors];
}

// CUDA launchers: nullptr, or the text of the error. T: float, bf16 or fp16, the type of the gradients.
template <typename T>
const char* launch_flat_adamw_norm(const FlatAdamWParams& params, void* stream);
template <typename T>
const char* launch_flat_adamw(const FlatAdamWParams& params, void* stream);
const char* launch_flat_adamw_control(const FlatAdamWControlParams& params, void* stream);

}  // namespace lgfast
