// Parameters, work split, arithmetic and launchers of flat_adamw; no torch types.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "common/host_device.h"

namespace lgfast {

constexpr int kFlatAdamWMaxTensors = 192;  // gradients of one launch of update: the kernel's parameters hold them all
constexpr int kFlatAdamWMaxCounted = 448;  // gradients of one launch of control, likewise
constexpr size_t kFlatAdamWMaxParamBytes = 4096;  // of a kernel
// The most elements of a gradient. Indices of elements are int, even those of a block that reaches past the end.
constexpr int64_t kFlatAdamWMaxNumel = int64_t{1} << 30;
constexpr int kFlatAdamWAlign = 8;  // offsets are multiples of this: 16 bytes or more of any type
constexpr int kFlatAdamWThreads = 256;
constexpr int kFlatAdamWChunk = 8 * kFlatAdamWThreads;  // elements of a block

// The hyperparameters of a group of parameters: columns of a float64 table with one row for each group.
enum Hyperparameter : int { kLr, kWeightDecay, kBeta1, kBeta2, kEps, kSign, kNumHyperparameters };

// One gradient and its place in the flat buffers.
struct FlatAdamWTensor {
  const void* grad;  // [numel], contiguous
  uint32_t place;    // its offset / kFlatAdamWAlign
  int numel;
};

// For one gradient: the parameter whose step is counted, and the group whose hyperparameters it follows.
struct FlatAdamWCounted {
  int parameter, group;
};

// The values that all elements share in one step. On the GPU they live in device memory, so none returns to the host.
struct FlatAdamWControl {
  double grad_scale;  // 1 / loss scale, times the clip factor
  int skip;           // a gradient is not finite: leave everything as it is
};

// The constants of one parameter's elements in one step.
struct AdamWFactors {
  float grad_scale, one_minus_beta1, beta2, one_minus_beta2;
  float decay;      // 1 - lr * weight_decay
  float step_size;  // lr / bias_correction1
  float inv_sqrt_bias_correction2, eps;
};

enum class LowType : int { kNone, kBFloat16, kFloat16 };

struct FlatAdamWParams {
  FlatAdamWTensor tensors[kFlatAdamWMaxTensors];
  int first_block[kFlatAdamWMaxTensors + 1];  // tensor k owns blocks [first_block[k], first_block[k + 1])
  int num_tensors;
  float* params;  // [total]; the two moments likewise
  float* exp_avg;
  float* exp_avg_sq;
  void* low;  // [total] copy in 16 bits, or nullptr
  LowType low_type;
  const FlatAdamWControl* control;
  const AdamWFactors* factors;  // [num_tensors]
  double* partials;             // sum of squares of each block, from block 0 of this launch on
};
static_assert(sizeof(FlatAdamWParams) <= kFlatAdamWMaxParamBytes);

// Parameters of the control kernel, which turns the sums over gradients into control and factors, and counts steps.
struct FlatAdamWControlParams {
  FlatAdamWCounted counted[kFlatAdamWMaxCounted];
  int num_counted;
  bool is_first;           // first launch of a step: it decides, the others follow
  const double* partials;  // [num_partials]
  int num_partials;
  const float* loss_scale;        // scalar, or nullptr: 1
  const float* found_inf;         // scalar; not 0: skip the step. Or nullptr
  const double* hyperparameters;  // [groups, kNumHyperparameters]
  float* steps;                   // steps taken, of each parameter
  int64_t* num_skipped;           // scalar
  double max_norm;                // 0: no clipping
  bool skip_nonfinite;
  FlatAdamWControl* control;
  AdamWFactors* factors;  // [num_counted]
};
static_assert(sizeof(FlatAdamWControlParams) <= kFlatAdamWMaxParamBytes);

// Decides on this step from the sum of squared gradients.
LGFAST_HOST_DEVICE FlatAdamWControl flat_adamw_control(double sum_of_squares, const FlatAdamWControlParams& p) {
  const bool is_finite = sum_of_squares - sum_of_squares == 0.0;
  const bool is_overflow = p.found_inf && *p.found_inf != 0.0f;
  const double inv_scale = p.loss_scale ? 1.0 / *p.loss_scale : 1.0;
  double factor = inv_scale;
  if (p.max_norm > 0) {
    const double clip = p.max_norm / (sqrt(sum_of_squares) * inv_scale + 1e-6);  // as torch's clip_grad_norm_
    if (!(clip >= 1.0)) factor *= clip;
  }
  return {factor, is_overflow || (p.skip_nonfinite && !is_finite)};
}

// Counts a step of one parameter and returns the constants of that step.
LGFAST_HOST_DEVICE AdamWFactors count_adamw_step(const FlatAdamWControl& control, const FlatAdamWControlParams& p,
                                                 const FlatAdamWCounted& counted) {
  const double* numbers = p.hyperparameters + int64_t{kNumHyperparameters} * counted.group;
  const double step = p.steps[counted.parameter] + 1.0;
  p.steps[counted.parameter] = static_cast<float>(step);
  return {static_cast<float>(control.grad_scale * numbers[kSign]),
          static_cast<float>(1.0 - numbers[kBeta1]),
          static_cast<float>(numbers[kBeta2]),
          static_cast<float>(1.0 - numbers[kBeta2]),
          static_cast<float>(1.0 - numbers[kLr] * numbers[kWeightDecay]),
          static_cast<float>(numbers[kLr] / (1.0 - pow(numbers[kBeta1], step))),
          static_cast<float>(1.0 / sqrt(1.0 - pow(numbers[kBeta2], step))),
          static_cast<float>(numbers[kEps])};
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

// CUDA launchers. They return nullptr or the text of the error. T: float, bf16 or fp16, the type of the gradients.
template <typename T>
const char* launch_flat_adamw_norm(const FlatAdamWParams& params, void* stream);
template <typename T>
const char* launch_flat_adamw(const FlatAdamWParams& params, void* stream);
const char* launch_flat_adamw_control(const FlatAdamWControlParams& params, void* stream);

}  // namespace lgfast
