// The warps of forward by warpgroups that copy q, k and v.
#pragma once

#include "short_attention/fwd_wgmma_block.cuh"

namespace lgfast {

// Starts copying the first `rows` rows of a head, a multiple of 8, with one warp. Those from `limit` on become zeros.
template <typename T>
__device__ __forceinline__ void load_rows_by_warp(SmemTile<64> tile, const T* head, int64_t token_stride, int rows,
                                                  int limit) {
  const int first = lane_index() / 8, chunk = lane_index() % 8;
  const T* from = head + first * token_stride + 8 * chunk;
  const uint32_t to[2] = {tile.at(first, chunk), tile.at(first + 4, chunk)};
#pragma unroll 4
  for (int row = 0; row < rows; row += 8) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      cp_async_16(to[half] + row * tile.kRowBytes, from, first + row + 4 * half < limit);
      from += 4 * token_stride;
    }
  }
}

// Tells the users of a part that it has arrived.
__device__ __forceinline__ void hand_over(int stage, bool is_v) {
  using Barriers = FwdWgmmaBarriers;
  fence_async_proxy();
#pragma unroll
  for (int group = 0; group < kWgmmaGroups; ++group)
    barrier_arrive(Barriers::full(stage, is_v, group), Barriers::kFullThreads);
  barrier_arrive(Barriers::full_last(stage), Barriers::kFullLastThreads);
}

// Copies one part of the heads of one stage, with one warp.
template <typename Traits>
__device__ __forceinline__ void copy_heads(const ShortAttentionFwdParams& params, int stage, bool is_v) {
  using T = typename Traits::Element;
  using Barriers = FwdWgmmaBarriers;
  const FwdWgmmaStage at = stage_tiles(stage);
  const int empty = Barriers::empty(stage, is_v);
  FwdHeads head = heads_of_stage<Traits>(params, stage);
  if (head.b >= params.batch) return;
  // The first head goes before the second, and q and k before v. Nobody has begun to use these barriers.
  if (stage > 0 || is_v) barrier_sync(empty, 2 * kWarpSize);
  const bool is_followed = !is_v || (stage == 0 && heads_of_stage<Traits>(params, 1).b < params.batch);
  for (bool is_first = true; head.b < params.batch; head.advance()) {
    if (!is_first) barrier_sync(empty, Barriers::kEmptyThreads);
    if (is_v) {
      load_rows_by_warp(at.values, head_rows<T>(params.v, head.b, head.h), params.v.token_stride, kWgmmaKeys,
                        params.num_keys);
    } else {
      load_rows_by_warp(at.queries, head_rows<T>(params.q, head.b, head.h), params.q.token_stride, kWgmmaKeys,
                        params.num_queries);
      load_rows_by_warp(at.keys, head_rows<T>(params.k, head.b, head.h), params.k.token_stride, kWgmmaKeys,
                        params.num_keys);
    }
    cp_async_commit();
    if (is_first && is_followed) barrier_arrive(empty + 1, 2 * kWarpSize);
    is_first = false;
    cp_async_wait<0>();
    hand_over(stage, is_v);
  }
}

}  // namespace lgfast
