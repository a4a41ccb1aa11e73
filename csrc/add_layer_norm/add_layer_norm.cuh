// add_layer_norm: y = residual + drop_scale x, out = LayerNorm(y), and the gradients of both uses of y in one pass.
//
//   xhat = (y - mean) rstd            d = rstd (dxhat - mean(dxhat) - xhat mean(dxhat xhat)) + dy
//   dxhat = dout weight               dresidual = d,  dx = drop_scale d
//
// Threads: neighbouring lanes, a power of two of them, own a row. Each lane holds 8 channels (16 bytes of a 16-bit row)
// or twice 8, so a row stays in registers and shuffles form its sums. Narrow rows share a warp. A backward block walks
// over many rows and keeps sums of dweight and dbias in registers. The block adds these up in shared memory, and
// column_sum_kernel adds up the sums of the blocks.
// Numerics: y is rounded before its statistics are taken, as in plain PyTorch; inside, the kernels compute in float32.
// No atomics, so two runs agree bit for bit.
#pragma once

#include "add_layer_norm/add_layer_norm.h"
#include "common/column_sum.cuh"
#include "common/unit.cuh"

namespace lgfast {

// The place of a thread: its lane among the `lanes` of a row, and its row (`group`) among the `groups` rows that the
// block takes at a time.
struct RowLanes {
  int lanes, lane, group, groups;
};

__device__ inline RowLanes row_lanes(int lanes) {
  return {lanes, thread_index() & (lanes - 1), thread_index() / lanes, kAddLayerNormThreads / lanes};
}

__device__ __forceinline__ float row_sum(float value, int lanes) {
#pragma unroll
  for (int mask = kWarpSize / 2; mask > 0; mask /= 2) {
    if (mask < lanes) value += shfl_xor(value, mask);
  }
  return value;
}

// Channels of a row beyond C, and rows beyond the last, read as 0.
template <typename T, int kUnits>
__device__ __forceinline__ void load_row(const T* __restrict__ row,  // [C]
                                         const RowLanes& at, int channels, bool is_row, float (&to)[kUnits * kUnit]) {
#pragma unroll
  for (int u = 0; u < kUnits; ++u) {
    const int channel = (at.lane + u * at.lanes) * kUnit;
    if (is_row && channel < channels) {
      load_unit(row + channel, to + u * kUnit);
    } else {
#pragma unroll
      for (int i = 0; i < kUnit; ++i) to[u * kUnit + i] = 0.0f;
    }
  }
}

template <typename T, int kUnits>
__device__ __forceinline__ void store_row(T* __restrict__ row, const RowLanes& at, int channels,
                                          const float (&from)[kUnits * kUnit]) {
#pragma unroll
  for (int u = 0; u < kUnits; ++u) {
    const int channel = (at.lane + u * at.lanes) * kUnit;
    if (channel < channels) store_unit(row + channel, from + u * kUnit);
  }
}

template <typename T>
__device__ __forceinline__ float row_drop_scale(const AddLayerNormRows& shape, int64_t row, bool is_row) {
  if (!shape.drop_scale || !is_row) return 1.0f;
  const bool is_short = shape.rows <= 0xffffffff;  // a division of 64 bits takes a hundred instructions
  const int64_t sample = is_short ? static_cast<uint32_t>(row) / static_cast<uint32_t>(shape.rows_per_sample)
                                  : row / shape.rows_per_sample;
  return to_float(static_cast<const T*>(shape.drop_scale)[sample]);
}

template <typename T, int kUnits>
__global__ void __launch_bounds__(kAddLayerNormThreads, kUnits == 1 ? 4 : 2)
    add_layer_norm_fwd_kernel(const AddLayerNormFwdParams params, int lanes) {
  constexpr int kValues = kUnits * kUnit;
  const RowLanes at = row_lanes(lanes);
  const AddLayerNormRows& shape = params.shape;
  const int channels = shape.channels;
  const float channel_share = 1.0f / static_cast<float>(channels);
  for (int64_t first = static_cast<int64_t>(block_index()) * at.groups; first < shape.rows;
       first += static_cast<int64_t>(grid_size()) * at.groups) {
    const int64_t row = first + at.group, offset = row * channels;
    const bool is_row = row < shape.rows;
    float y[kValues], out[kValues];
    load_row<T, kUnits>(static_cast<const T*>(params.residual) + offset, at, channels, is_row, y);
    load_row<T, kUnits>(static_cast<const T*>(params.x) + offset, at, channels, is_row, out);
    const float scale = row_drop_scale<T>(shape, row, is_row);
    float sum = 0.0f, squares = 0.0f;
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
      y[i] = to_float(from_float<T>(y[i] + scale * out[i]));
      sum += y[i];
    }
    const float mean = row_sum(sum, lanes) * channel_share;
#pragma unroll
    for (int i = 0; i < kValues; ++i) {
      const bool is_channel = (at.lane + i / kUnit * lanes) * kUnit < channels;
      squares += is_channel ? (y[i] - mean) * (y[i] - mean) : 0.0f;
    }
    const float rstd = 1.0f / sqrtf(row_sum(squares, lanes) * channel_share + static_cast<float>(params.eps));
    if (!is_row) continue;
    store_row<T, kUnits>(static_cast<T*>(params.y) + offset, at, channels, y);
    float weight[kValues], bias[kValues];
    load_row<T, kUnits>(static_cast<const T*>(shape.weight), at, channels, true, weight);
    load_row<T, kUnits>(static_cast<const T*>(params.bias), at, channels, true, bias);
#pragma unroll
    for (int i = 0; i < kValues; ++i) out[i] = (y[i] - mean) * rstd * weight[i] + bias[i];
    store_row<T, kUnits>(static_cast<T*>(params.out) + offset, at, channels, out);
    if (at.lane == 0) {
      static_cast<float*>(params.mean)[row] = mean;
      static_cast<float*>(params.rstd)[row] = rstd;
    }
  }
}

// Adds up dweight and dbias over the block's groups and writes them to its line of `partials`.
template <int kUnits>
__device__ void store_partials(const RowLanes& at, int channels, const float (&dweight)[kUnits * kUnit],
                               const float (&dbias)[kUnits * kUnit],
                               float* __restrict__ partials) {  // [2 * C]
  float* sums = reinterpret_cast<float*>(dynamic_smem());       // [groups, 2 * C]
  float* own = sums + at.group * 2 * channels;
#pragma unroll
  for (int i = 0; i < kUnits * kUnit; ++i) {
    const int channel = (at.lane + i / kUnit * at.lanes) * kUnit + i % kUnit;
    if (channel < channels) {
      own[channel] = dweight[i];
      own[channels + channel] = dbias[i];
    }
  }
  sync_threads();
  for (int column = thread_index(); column < 2 * channels; column += kAddLayerNormThreads) {
    float sum = 0.0f;
    for (int group = 0; group < at.groups; ++group) sum += sums[group * 2 * channels + column];
    partials[column] = sum;
  }
}

template <typename T, int kUnits>
__global__ void __launch_bounds__(kAddLayerNormThreads, 2)
    add_layer_norm_bwd_kernel(const AddLayerNormBwdParams params, int lanes) {
  constexpr int kValues = kUnits * kUnit;
  const RowLanes at = row_lanes(lanes);
  const AddLayerNormRows& shape = params.shape;
  const int channels = shape.channels;
  const float channel_share = 1.0f / static_cast<float>(channels);
  float weight[kValues], dweight[kValues] = {}, dbias[kValues] = {};
  load_row<T, kUnits>(static_cast<const T*>(shape.weight), at, channels, true, weight);
  for (int64_t first = static_cast<int64_t>(block_index()) * at.groups; first < shape.rows;
       first += static_cast<int64_t>(grid_size()) * at.groups) {
    const int64_t row = first + at.group, offset = row * channels;
    const bool is_row = row < shape.rows;
    float xhat[kValues], d[kValues], dy[kValues];
    load_row<T, kUnits>(static_cast<const T*>(params.y) + offset, at, channels, is_row, xhat);
    load_row<T, kUnits>(static_cast<const T*>(params.dout) + offset, at, channels, is_row, d);
    load_row<T, kUnits>(static_cast<const T*>(params.dy) + offset, at, channels, is_row && params.dy, dy);
    const float mean = is_row ? static_cast<const float*>(params.mean)[row] : 0.0f;
    const float rstd = is_row ? static_cast<const float*>(params.rstd)[row] : 0.0f;
    float sum = 0.0f, products = 0.0f;
#pragma unroll
    for (int i = 0; i < kValues; ++i) {  // dout and weight are 0 beyond C, and with them every term
      xhat[i] = (xhat[i] - mean) * rstd;
      dweight[i] += d[i] * xhat[i];
      dbias[i] += d[i];
      d[i] *= weight[i];
      sum += d[i];
      products += d[i] * xhat[i];
    }
    sum = row_sum(sum, lanes) * channel_share;
    products = row_sum(products, lanes) * channel_share;
    if (!is_row) continue;
#pragma unroll
    for (int i = 0; i < kValues; ++i) d[i] = rstd * (d[i] - sum - xhat[i] * products) + dy[i];
    store_row<T, kUnits>(static_cast<T*>(params.dresidual) + offset, at, channels, d);
    if (!shape.drop_scale) continue;
    const float scale = row_drop_scale<T>(shape, row, true);
#pragma unroll
    for (int i = 0; i < kValues; ++i) d[i] *= scale;
    store_row<T, kUnits>(static_cast<T*>(params.dx) + offset, at, channels, d);
  }
  float* partials = params.partials + static_cast<int64_t>(block_index()) * 2 * channels;
  store_partials<kUnits>(at, channels, dweight, dbias, partials);
}

template <typename T>
const char* launch_add_layer_norm_fwd(const AddLayerNormFwdParams& params, void* stream) {
  const AddLayerNormPlan plan = add_layer_norm_plan(params.shape.rows, params.shape.channels);
  if (plan.fwd_blocks == 0) return nullptr;
  const auto kernel = plan.units_per_lane == 1 ? add_layer_norm_fwd_kernel<T, 1> : add_layer_norm_fwd_kernel<T, 2>;
  return launch(kernel, Grid{plan.fwd_blocks}, kAddLayerNormThreads, 0, stream, params, plan.lanes);
}

template <typename T>
const char* launch_add_layer_norm_bwd(const AddLayerNormBwdParams& params, void* stream) {
  const AddLayerNormPlan plan = add_layer_norm_plan(params.shape.rows, params.shape.channels);
  const auto kernel = plan.units_per_lane == 1 ? add_layer_norm_bwd_kernel<T, 1> : add_layer_norm_bwd_kernel<T, 2>;
  const char* error = nullptr;
  if (plan.blocks > 0)
    error = launch(kernel, Grid{plan.blocks}, kAddLayerNormThreads, plan.bwd_smem_bytes, stream, params, plan.lanes);
  if (error) return error;
  return launch_column_sum<T>(params.partials, plan.blocks, 2 * params.shape.channels, params.dparams, stream);
}

}  // namespace lgfast
