// What the warpgroup of the queries forms in the backward kernel by warpgroups: the scores and their gradients, 64
// queries by a part of the keys at a time, and dq.
#pragma once

#include "short_attention/bwd_wgmma_block.cuh"

namespace lgfast {

// Starts scores = q k^T or dp = dout v^T.
template <typename T, int kBlocks>
__device__ __forceinline__ void multiply_keys(float (&sums)[kBlocks][4], SmemTile<64> queries, SmemTile<64> keys) {
  const uint64_t a = warpgroup_descriptor(opaque(queries.address)), b = warpgroup_descriptor(opaque(keys.address));
#pragma unroll
  for (int step = 0; step < 4; ++step)
    warpgroup_abt<T>(sums, advance_descriptor(a, 32 * step), advance_descriptor(b, 32 * step), step > 0);
}

// Starts dq += ds times the keys of a part.
template <typename T, int kSteps>
__device__ __forceinline__ void add_keys(float (&dq)[8][4], const uint32_t (&ds)[kSteps][4], SmemTile<64> keys,
                                         bool adds) {
  const uint64_t b = warpgroup_descriptor(opaque(keys.address));
#pragma unroll
  for (int step = 0; step < kSteps; ++step)
    warpgroup_ab<T>(dq, ds[step], advance_descriptor(b, step * kTileRows * keys.kRowBytes), adds || step > 0);
}

// The statistics of this lane's two queries.
struct LaneStats {
  QueryStats rows[2];
  __device__ __forceinline__ LaneStats(const QueryStats* stats) {
    stats += fresh_warp() * kTileRows + fresh_lane() / 4;
    rows[0] = stats[0];
    rows[1] = stats[8];
  }
};

// Scores of keys that do not exist, of which at most 15 are the last of the part, become minus infinity.
template <int kBlocks>
__device__ __forceinline__ void mask_keys(float (&scores)[kBlocks][4], int keys) {
#pragma unroll
  for (int block = kBlocks - 2; block < kBlocks; ++block) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (8 * block + 2 * (fresh_lane() % 4) + i % 2 >= keys) scores[block][i] = negative_infinity();
    }
  }
}

// Takes scores and dp. Forms p and ds, and writes both to shared memory, transposed. Returns ds as operands.
template <typename T, int kBlocks>
__device__ __forceinline__ void take_scores(uint32_t (&ds)[kBlocks / 2][4], const float (&scores)[kBlocks][4],
                                            const float (&dp)[kBlocks][4], const QueryStats* stats, float scale_log2,
                                            SmemTile<64> p_tile, SmemTile<64> ds_tile) {
  const LaneStats queries(stats);
  const int lane = fresh_lane();
  const uint32_t place = p_tile.at(lane % 8 + lane / 16 * 8, 2 * fresh_warp() + lane / 8 % 2);
  const uint32_t other = ds_tile.address - p_tile.address;
#pragma unroll
  for (int step = 0; step < kBlocks / 2; ++step) {
    uint32_t p[4];
#pragma unroll
    for (int word = 0; word < 4; ++word) {
      const QueryStats& query = queries.rows[word % 2];
      float probability[2], gradient[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int block = 2 * step + word / 2, element = word % 2 * 2 + i;
        probability[i] = fast_exp2(scores[block][element] * scale_log2 - query.lse_log2);
        gradient[i] = probability[i] * (dp[block][element] - query.delta);
      }
      p[word] = pack2<T>(probability[0], probability[1]);
      ds[step][word] = pack2<T>(gradient[0], gradient[1]);
    }
    const uint32_t to = place + step * kTileRows * p_tile.kRowBytes;
    stmatrix_x4_trans(to, p);
    stmatrix_x4_trans(to + other, ds[step]);
  }
}

// Writes factor times dq of a warp's queries to its rows of shared memory.
template <typename T>
__device__ __forceinline__ void stage_dq(SmemTile<64> tile, const float (&dq)[8][4], float factor) {
  const uint32_t to = tile.below(fresh_warp() * kTileRows).at(fresh_lane() % 16, fresh_lane() / 16);
#pragma unroll
  for (int block = 0; block < 8; block += 2) {
    uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float* pair = &dq[block + i / 2][i % 2 * 2];
      words[i] = pack2<T>(pair[0] * factor, pair[1] * factor);
    }
    stmatrix_x4(tile.advance(to, block), words);
  }
}

// Takes every head as the warpgroup of the queries. The scores of the part of the keys that follows are formed beside
// dq.
template <typename Traits>
__device__ __forceinline__ void take_queries(const ShortAttentionBwdParams& params, float scale_log2) {
  using T = typename Traits::Element;
  using Barriers = BwdWgmmaBarriers;
  constexpr int kFirst = Traits::kFirstBlocks, kSecond = Traits::kSecondBlocks, kFirstKeys = 8 * kFirst;
  const BwdWgmmaMemory at;
  float scores[kFirst][4], dp[kFirst][4], second[kSecond][4], second_dp[kSecond][4], dq[8][4];
  uint32_t ds[kFirst / 2][4], second_ds[kSecond / 2][4];
  barrier_sync(Barriers::full(0), Barriers::kFullThreads);
  warpgroup_fence();
  multiply_keys<T>(scores, at.queries(0), at.keys(0));
  multiply_keys<T>(dp, at.douts(0), at.values(0));
  warpgroup_commit();
#pragma unroll 1
  for (int step = 0;; ++step) {
    warpgroup_wait<0>(scores);
    warpgroup_wait<0>(dp);
    warpgroup_wait<0>(dq);
    if (step > 0) {
      stage_dq<T>(at.staged(step - 1), dq, params.softmax_scale);
      barrier_arrive(Barriers::done(step - 1), Barriers::kDoneThreads);
    }
    if (!exists<Traits>(step, params)) break;
    const int slab = step % Traits::kSlabs, count = step / Traits::kSlabs;
    if (step > 0) barrier_sync(Barriers::free(0), Barriers::kScoresThreads);
    take_scores<T>(ds, scores, dp, at.stats(slab), scale_log2, at.p(), at.ds());
    warpgroup_fence();
    multiply_keys<T>(second, at.queries(slab), at.keys(count).below(kFirstKeys));
    multiply_keys<T>(second_dp, at.douts(slab), at.values(count).below(kFirstKeys));
    add_keys<T>(dq, ds, at.keys(count), false);
    warpgroup_commit();
    fence_async_proxy();
    barrier_arrive(Barriers::ready(0), Barriers::kScoresThreads);
    warpgroup_wait<0>(second);
    warpgroup_wait<0>(second_dp);
    warpgroup_wait<0>(dq);
    if (step > 0) barrier_sync(Barriers::free(1), Barriers::kScoresThreads);
    mask_keys(second, params.num_keys - kFirstKeys);
    take_scores<T>(second_ds, second, second_dp, at.stats(slab), scale_log2, at.p().below(kFirstKeys),
                   at.ds().below(kFirstKeys));
    barrier_sync(Barriers::full(step + 1), Barriers::kFullThreads);
    const int next_slab = (step + 1) % Traits::kSlabs, next_count = (step + 1) / Traits::kSlabs;
    // Behind the last slab of the block come products of old bytes, whose results nobody takes. The values of the head
    // before were overwritten without a fence.
    const auto next_values = exists<Traits>(step + 1, params) ? at.values(next_count) : at.keys(count);
    warpgroup_fence();
    multiply_keys<T>(scores, at.queries(next_slab), at.keys(next_count));
    multiply_keys<T>(dp, at.douts(next_slab), next_values);
    add_keys<T>(dq, second_ds, at.keys(count).below(kFirstKeys), true);
    warpgroup_commit();
    fence_async_proxy();
    barrier_arrive(Barriers::ready(1), Barriers::kScoresThreads);
  }
}

}  // namespace lgfast
