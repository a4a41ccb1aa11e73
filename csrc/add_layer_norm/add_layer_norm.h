// Sizes, work split and launchers of add_layer_norm; no torch types.
#pragma once

#include <cstdint>

#include "common/arithmetic.h"

namespace lgfast {

constexpr int kAddLayerNormMaxChannels = 512;
constexpr int kAddLayerNormThreads = 256;
constexpr int kAddLayerNormMaxBlocks = 512;      // in backward each writes a partial sum; not yet tuned on a GPU
constexpr int kAddLayerNormMaxFwdBlocks = 8192;  // so many that their last wave is a small part

// The parameters that both directions share. Every tensor is contiguous.
struct AddLayerNormRows {
  int64_t rows;
  int64_t rows_per_sample;  // rows that share an element of drop_scale
  int channels;             // C, a multiple of 8
  const void* weight;       // [C]
  const void* drop_scale;   // [B], or nullptr: 1
};

struct AddLayerNormFwdParams {
  AddLayerNormRows shape;
  const void* x;         // [rows, C]
  const void* residual;  // [rows, C]
  const void* bias;      // [C]
  double eps;
  void* y;     // [rows, C]
  void* out;   // [rows, C]
  void* mean;  // [rows], float (double for double tensors); rstd likewise
  void* rstd;
};

struct AddLayerNormBwdParams {
  AddLayerNormRows shape;
  const void* dout;  // [rows, C]
  const void* dy;    // [rows, C], or nullptr: 0
  const void* y;     // [rows, C]
  const void* mean;  // [rows]
  const void* rstd;
  void* dx;  // [rows, C]; not written without drop_scale, where it equals dresidual
  void* dresidual;
  void* dparams;    // [2, C]: of weight and bias
  float* partials;  // [add_layer_norm_plan(...).blocks, 2 * C], CUDA only
};

// How the kernels split the rows: `lanes` neighbouring threads own a row. Each holds 8 channels, or 16 where C > 256.
struct AddLayerNormPlan {
  int lanes, rows_per_block, units_per_lane;
  int fwd_blocks;
  int blocks, bwd_smem_bytes;  // of the backward kernel
};

inline AddLayerNormPlan add_layer_norm_plan(int64_t rows, int channels) {
  AddLayerNormPlan plan{};
  const int units = channels / 8;
  plan.lanes = 1;
  while (plan.lanes < 32 && plan.lanes < units) plan.lanes *= 2;
  plan.units_per_lane = ceil_div(units, plan.lanes);
  plan.rows_per_block = kAddLayerNormThreads / plan.lanes;
  const int64_t blocks = ceil_div(rows, plan.rows_per_block);
  plan.fwd_blocks = static_cast<int>(blocks < kAddLayerNormMaxFwdBlocks ? blocks : kAddLayerNormMaxFwdBlocks);
  plan.blocks = static_cast<int>(blocks < kAddLayerNormMaxBlocks ? blocks : kAddLayerNormMaxBlocks);
  plan.bwd_smem_bytes = plan.rows_per_block * 2 * channels * static_cast<int>(sizeof(float));
  return plan;
}

// T: float, bf16, fp16. Both return nullptr or the text of the launch error.
template <typename T>
const char* launch_add_layer_norm_fwd(const AddLayerNormFwdParams& params, void* stream);
template <typename T>
const char* launch_add_layer_norm_bwd(const AddLayerNormBwdParams& params, void* stream);

}  // namespace lgfast
