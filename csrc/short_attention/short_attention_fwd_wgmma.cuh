// out = softmax(softmax_scale * q k^T) v and lse = log sum exp, by the products of warpgroups (sm_90a): D = 64, and a
// whole row of scores in registers.
//
// A block stays on a multiprocessor and takes head after head. Two warpgroups take turns at the first three tiles of 64
// queries: scores with all keys, one maximum, one sum, and out = p v with p from the registers where it is. While one
// of them forms probabilities, the tensor cores work for the other. Scores come in two halves, so that the maximum of
// the first is formed beside the products of the second; likewise the first half of the probabilities is multiplied
// while the second is formed.
//
// Each of two heads has a stage of shared memory. Each of four warps of another warpgroup copies one part of a stage, q
// with k or v, so the rows of the next head are on their way while the block works on this one, and the rows of the
// one after next follow as soon as the last reader of a part has gone. A fourth warpgroup takes the last queries.
//
// Numerics: as short_attention_fwd.cuh; the maximum of the first 192 queries is that of the whole row. Deterministic.
// Follows FlashAttention-3 (arXiv 2407.08608) in warps that copy and warpgroups that take turns.
#pragma once

#include "short_attention/fwd_wgmma_copy.cuh"
#include "short_attention/fwd_wgmma_last.cuh"
#include "short_attention/fwd_wgmma_tile.cuh"

namespace lgfast {

// The warp's index in its warpgroup, computed where it is used; see fresh_lane.
__device__ __forceinline__ int fresh_warp() { return opaque(warp_index()) % uint32_t(kWarpgroupWarps); }

template <typename Traits>
__device__ __forceinline__ void take_heads(const ShortAttentionFwdParams& params, int group) {
  using Barriers = FwdWgmmaBarriers;
  constexpr int kGroups = Traits::kGroups, kStages = Traits::kStages;
  const float scale_log2 = params.softmax_scale * kLog2E;
  const int count = ceil_div(params.batch * params.heads - block_index(), grid_size());
  FwdHeads head(params.heads, block_index(), grid_size());
  int tile = kGroups - 1 - group;
  for (int n = 0; n < count; ++n, tile -= kWgmmaTiles) {
    const int stage = n % kStages;
    const bool goes_on = n + kStages < count;  // another head comes to this stage
    const FwdWgmmaStage at = stage_tiles(stage);
    barrier_sync(Barriers::full(stage, false, group), Barriers::kFullThreads);
    bool has_values = false;
#pragma unroll 1
    for (; tile < kWgmmaTiles; tile += kGroups) {
      const bool is_last = tile + kGroups >= kWgmmaTiles;
      FwdWgmmaRows rows;
      take_tile<Traits>(
          rows, at.queries.below(tile * kWarpgroupRows), at, params.num_keys, scale_log2,
          [&] {
#pragma unroll 1
            for (int left = opaque(!has_values); left > 0; --left)
              barrier_sync(Barriers::full(stage, true, group), Barriers::kFullThreads);
            has_values = true;
          },
          [&] { arrive_here(is_last && goes_on, Barriers::empty(stage, false), Barriers::kEmptyThreads); });
      if (is_last && goes_on) barrier_arrive(Barriers::empty(stage, true), Barriers::kEmptyThreads);
      const int first = tile * kWarpgroupRows + fresh_warp() * kTileRows;
      store_whole_rows<typename Traits::Element>(rows, store_tile(group, fresh_warp()), params, head.b, head.h, first);
    }
    head.advance();
  }
}

template <typename Traits>
__global__ void __launch_bounds__(Traits::kThreads, 1)
    short_attention_fwd_wgmma_kernel(const ShortAttentionFwdParams params) {
  if constexpr (kHasWarpgroups) {
    const int warp = shfl(warp_index(), 0), group = warp / kWarpgroupWarps;
    if (group == 0) {
      lower_registers<Traits::kCopyRegisters>();
      copy_heads<Traits>(params, warp / 2, warp % 2 != 0);
    } else if (group == 1) {
      lower_registers<Traits::kLastRegisters>();
      take_last_queries<Traits>(params);
    } else {
      raise_registers<Traits::kRegisters>();
      take_heads<Traits>(params, group - 2);
    }
  }
}

template <typename Traits>
const char* launch_fwd_wgmma(const ShortAttentionFwdParams& params, const ShortAttentionFwdPlan& plan, void* stream) {
  return launch(short_attention_fwd_wgmma_kernel<Traits>, Grid{plan.blocks, 1, 1}, Traits::kThreads, plan.smem_bytes,
                stream, params);
}

}  // namespace lgfast
