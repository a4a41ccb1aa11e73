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

// Copies one part of all heads, with one warp. At the start, the warps begin one after the other, so that no part waits
// for one that is needed later.
template <typename T, FwdPart kPart>
__device__ __forceinline__ void copy_part(const ShortAttentionFwdParams& params, const FwdPlaces& places) {
  constexpr int kAfterFirst = 1;  // number of the barrier between the first two warps
  const HeadsInput& from = kPart == kKeysPart ? params.k : kPart == kQueriesPart ? params.q : params.v;
  const int rows = kPart == kQueriesPart ? params.num_queries : params.num_keys, count = count_heads(params);
  FwdHeads head = own_heads(params);
  if (kPart > 0) barrier_sync(kAfterFirst + kPart - 1, 2 * kWarpSize);
  for (int n = 0; n < count; ++n, head.advance()) {
    places.await_place(n, kPart);
    load_rows_by_warp(places.tile(n, kPart), head_rows<T>(from, head.b, head.h), from.token_stride, kWgmmaKeys, rows);
    cp_async_commit();
    if (n == 0 && kPart + 1 < kParts) barrier_arrive(kAfterFirst + kPart, 2 * kWarpSize);
    cp_async_wait<0>();
    places.hand_over(n, kPart);
  }
}

}  // namespace lgfast
