// bias_gelu: out = gelu(x + bias) with the exact GELU, dx = dout gelu'(x + bias), dbias = column sums of dx.
//
// Threads: a thread takes eight channels (a unit) at a time. Forward walks over the units of the whole tensor. In
// backward a block owns 256 channels, and a warp takes one row of them at a time; dbias stays in registers while the
// block walks over its rows. Then the block adds its warps' sums in shared memory, and column_sum_kernel adds the sums
// of the blocks.
// Numerics: float32, rounded once; dbias sums dx before dx is rounded. No atomics, so two runs agree bit for bit.
#pragma once

#include "bias_gelu/bias_gelu.h"
#include "bias_gelu/gelu.h"
#include "common/column_sum.cuh"
#include "common/unit.cuh"

namespace lgfast {

__device__ __forceinline__ Normal<float> device_normal(float x) {
  return normal_at(x, fast_reciprocal(1.0f + kGeluTailSlope * fabsf(x)), fast_exp2(x * x * kMinusHalfLog2E));
}

template <typename T>
__global__ void __launch_bounds__(kBiasGeluThreads) bias_gelu_fwd_kernel(const BiasGeluParams params) {
  const int64_t units_per_row = params.channels / kUnit, units = params.rows * units_per_row;
  const int64_t step = static_cast<int64_t>(grid_size()) * kBiasGeluThreads;
  const int64_t first = static_cast<int64_t>(block_index()) * kBiasGeluThreads + thread_index();
  const int column_step = static_cast<int>(step % units_per_row);
  int column = static_cast<int>(first % units_per_row);
  for (int64_t u = first; u < units; u += step) {
    float x[kUnit], bias[kUnit];
    load_unit(static_cast<const T*>(params.x) + u * kUnit, x);
    load_unit(static_cast<const T*>(params.bias) + column * kUnit, bias);
    column += column_step;
    if (column >= units_per_row) column -= static_cast<int>(units_per_row);
#pragma unroll
    for (int i = 0; i < kUnit; ++i) {
      x[i] += bias[i];
      x[i] *= device_normal(x[i]).cdf;
    }
    store_unit(static_cast<T*>(params.out) + u * kUnit, x);
  }
}

template <typename T>
__global__ void __launch_bounds__(kBiasGeluThreads) bias_gelu_bwd_kernel(const BiasGeluParams params) {
  const int channels = params.channels, channel = block_index_y() * kBiasGeluColumns + lane_index() * kUnit;
  const bool is_channel = channel < channels;
  float bias[kUnit] = {}, dbias[kUnit] = {};
  if (is_channel) load_unit(static_cast<const T*>(params.bias) + channel, bias);
  const int64_t step = static_cast<int64_t>(grid_size()) * num_warps();
  for (int64_t row = static_cast<int64_t>(block_index()) * num_warps() + warp_index(); is_channel && row < params.rows;
       row += step) {
    const int64_t at = row * channels + channel;
    float x[kUnit], d[kUnit];
    load_unit(static_cast<const T*>(params.x) + at, x);
    load_unit(static_cast<const T*>(params.dout) + at, d);
#pragma unroll
    for (int i = 0; i < kUnit; ++i) {
      x[i] += bias[i];
      const Normal<float> normal = device_normal(x[i]);
      d[i] *= normal.cdf + x[i] * normal.pdf;
      dbias[i] += d[i];
    }
    store_unit(static_cast<T*>(params.out) + at, d);
  }
  float* sums = reinterpret_cast<float*>(dynamic_smem());  // [warps, kBiasGeluColumns]
#pragma unroll
  for (int i = 0; i < kUnit; ++i) sums[warp_index() * kBiasGeluColumns + lane_index() * kUnit + i] = dbias[i];
  sync_threads();
  const int column = block_index_y() * kBiasGeluColumns + thread_index();
  if (column >= channels) return;
  float sum = 0.0f;
  for (int warp = 0; warp < num_warps(); ++warp) sum += sums[warp * kBiasGeluColumns + thread_index()];
  params.partials[static_cast<int64_t>(block_index()) * channels + column] = sum;
}

template <typename T>
const char* launch_bias_gelu_fwd(const BiasGeluParams& params, void* stream) {
  const BiasGeluPlan plan = bias_gelu_plan(params.rows, params.channels);
  if (plan.fwd_blocks == 0) return nullptr;
  return launch(bias_gelu_fwd_kernel<T>, Grid{plan.fwd_blocks}, kBiasGeluThreads, 0, stream, params);
}

template <typename T>
const char* launch_bias_gelu_bwd(const BiasGeluParams& params, void* stream) {
  static_assert(kBiasGeluColumns == kBiasGeluThreads && kBiasGeluColumns == kWarpSize * kUnit);
  constexpr int kSmemBytes = kBiasGeluThreads / kWarpSize * kBiasGeluColumns * static_cast<int>(sizeof(float));
  const BiasGeluPlan plan = bias_gelu_plan(params.rows, params.channels);
  const char* error = nullptr;
  if (plan.row_blocks > 0)
    error = launch(bias_gelu_bwd_kernel<T>, Grid{plan.row_blocks, plan.column_blocks}, kBiasGeluThreads, kSmemBytes,
                   stream, params);
  if (error) return error;
  return launch_column_sum<T>(params.partials, plan.row_blocks, params.channels, params.dbias, stream);
}

}  // namespace lgfast
