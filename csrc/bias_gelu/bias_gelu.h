// Sizes, work split and launchers of bias_gelu; no torch types.
#pragma once

#include <cstdint>

#include "common/arithmetic.h"

namespace lgfast {

constexpr int kBiasGeluThreads = 256;
constexpr int kBiasGeluColumns = 256;    // channels of a backward block: 8 a lane
constexpr int kBiasGeluMaxBlocks = 512;  // of the backward kernel; not yet tuned on a GPU

// Every tensor is contiguous; C is a multiple of 8.
struct BiasGeluParams {
  const void* x;     // [rows, C]
  const void* bias;  // [C]
  const void* dout;  // [rows, C], backward only
  void* out;         // [rows, C]; dx in backward
  void* dbias;       // [C], backward only
  float* partials;   // [bias_gelu_plan(...).row_blocks, C], backward on CUDA only
  int64_t rows;
  int channels;
};

struct BiasGeluPlan {
  int fwd_blocks;
  int row_blocks, column_blocks;  // of the backward kernel
};

inline BiasGeluPlan bias_gelu_plan(int64_t rows, int channels) {
  constexpr int kRowsAtOnce = kBiasGeluThreads / 32, kMaxFwdBlocks = 1024;
  BiasGeluPlan plan{};
  const int64_t fwd_blocks = ceil_div(rows * (channels / 8), kBiasGeluThreads);
  plan.fwd_blocks = static_cast<int>(fwd_blocks < kMaxFwdBlocks ? fwd_blocks : kMaxFwdBlocks);
  plan.column_blocks = ceil_div(channels, kBiasGeluColumns);
  const int64_t row_blocks = ceil_div(rows, kRowsAtOnce);
  const int64_t most = plan.column_blocks < kBiasGeluMaxBlocks ? kBiasGeluMaxBlocks / plan.column_blocks : 1;
  plan.row_blocks = static_cast<int>(row_blocks < most ? row_blocks : most);
  return plan;
}

// T: float, bf16, fp16. Both return nullptr or the text of the launch error.
template <typename T>
const char* launch_bias_gelu_fwd(const BiasGeluParams& params, void* stream);
template <typename T>
const char* launch_bias_gelu_bwd(const BiasGeluParams& params, void* stream);

}  // namespace lgfast
