// out = softmax(softmax_scale * q k^T) v and lse = log sum exp, by the products of warpgroups (sm_90a): D = 64, and a
// whole row of scores in registers.
//
// A block stays on a multiprocessor and takes head after head. Two warpgroups take turns at the first three tiles of 64
// queries: scores with all keys, one maximum, one sum, and out = p v with p from the registers where it is. While one
// of them forms probabilities, the tensor cores work for the other. Scores come in two halves, so that the maximum of
// the first is formed beside the products of the second; likewise the first half of the probabilities is multiplied
// while the second is formed.
//
// Shared memory has eight places for q, k or v of a head, to which they come by turns: those of almost three heads.
// Each of three warps copies one of the three, so the next rows are on their way while the block works, and rows follow
// as soon as the last reader of a place has gone. A third warpgroup takes the last queries.
//
// Numerics: as short_attention_fwd.cuh; the maximum of the first 192 queries is that of the whole row. Deterministic.
// Follows FlashAttention-3 (arXiv 2407.08608) in warps that copy and warpgroups that take turns.
#pragma once

#include "short_attention/fwd_wgmma_copy.cuh"
#include "short_attention/fwd_wgmma_last.cuh"
#include "short_attention/fwd_wgmma_tile.cuh"

namespace lgfast {

template <typename Traits>
__device__ __forceinline__ void take_heads(const ShortAttentionFwdParams& params, const FwdPlaces& places, int group) {
  const float scale_log2 = params.softmax_scale * kLog2E;
  const int count = count_heads(params);
  FwdHeads head = own_heads(params);
  int tile = kWgmmaGroups - 1 - group;
  for (int n = 0; n < count; ++n, tile -= kWgmmaTiles) {
    places.await(n, kKeysPart);
    places.await(n, kQueriesPart);
#pragma unroll 1
    for (; tile < kWgmmaTiles; tile += kWgmmaGroups) {
      FwdWgmmaRows rows;
      take_tile<Traits>(rows, places, n, tile, tile + kWgmmaGroups >= kWgmmaTiles, params.num_keys, scale_log2);
      store_whole_rows<typename Traits::Element>(rows, places.results(group, fresh_warp()), params, head.b, head.h,
                                                 tile * kWarpgroupRows + fresh_warp() * kTileRows);
    }
    head.advance();
  }
}

template <typename Traits>
__global__ void __launch_bounds__(Traits::kThreads, 1)
    short_attention_fwd_wgmma_kernel(const ShortAttentionFwdParams params) {
  if constexpr (kHasWarpgroups) {
    using T = typename Traits::Element;
    const int warp = shfl(warp_index(), 0), group = warp / kWarpgroupWarps, part = warp % kWarpgroupWarps;
    const FwdPlaces places;
    if (thread_index() == 0) places.begin();
    sync_threads();
    if (group < kWgmmaGroups) {
      raise_registers<Traits::kRegisters>();
      take_heads<Traits>(params, places, group);
    } else if (group == kWgmmaGroups) {
      lower_registers<Traits::kLastRegisters>();
      take_last_queries<Traits>(params, places);
    } else {
      lower_registers<Traits::kCopyRegisters>();
      if (part == kKeysPart) copy_part<T, kKeysPart>(params, places);
      if (part == kQueriesPart) copy_part<T, kQueriesPart>(params, places);
      if (part == kValuesPart) copy_part<T, kValuesPart>(params, places);
    }
  }
}

template <typename Traits>
const char* launch_fwd_wgmma(const ShortAttentionFwdParams& params, const ShortAttentionFwdPlan& plan, void* stream) {
  return launch(short_attention_fwd_wgmma_kernel<Traits>, Grid{plan.blocks, 1, 1}, Traits::kThreads, plan.smem_bytes,
                stream, params);
}

}  // namespace lgfast
