// out = softmax(softmax_scale * q k^T) v and lse = log sum exp, by the products of warpgroups (sm_90a): D = 64, and a
// whole row of scores in registers.
//
// A block stays on a multiprocessor and takes head after head. Two warpgroups take turns at the first three tiles of 64
// queries: scores with all keys, one maximum, one sum, and out = p v with p from the registers where it is. While one
// of them forms probabilities, the tensor cores work for the other. Scores come in two halves, so that the maximum of
// the first is formed beside the products of the second; likewise the first half of the probabilities is multiplied
// while the second is formed.
//
// Each of two heads has a stage of shared memory. Two warps of a first warpgroup copy, one for each stage, so the rows
// of the next head are on their way while the block works on this one; q and k of the one after next follow as soon as
// the last scores are there. Two more warps compute the last queries, up to 16, by products of a warp: a tile of a
// warpgroup would multiply 64 rows for them.
//
// Numerics: as short_attention_fwd.cuh; the maximum of the first 192 queries is that of the whole row. Deterministic.
// Follows FlashAttention-3 (arXiv 2407.08608) in warps that copy and warpgroups that take turns.
#pragma once

#include "short_attention/fwd_rows.cuh"

namespace lgfast {

template <typename T>
struct ShortAttentionFwdWgmmaTraits {
  using Element = T;
  static constexpr int kD = 64, kRowTiles = 1;
  static constexpr int kGroups = kWgmmaGroups, kStages = kWgmmaStages, kThreads = kWgmmaWarps * kWarpSize;
  static constexpr int kBlocks = kWgmmaKeys / 2 / 8;     // of eight keys, in half the scores
  static constexpr int kSteps = kWgmmaKeys / kTileRows;  // of 16 keys in the products with v
  static constexpr int kFirstSteps = kBlocks / 2;        // that the first half of the scores covers
  // The last queries, of one warp, take the keys in two slabs.
  static constexpr int kFirstTiles = kFirstOfTwoSlabsKeys / kTileRows, kSureTiles = kSteps - kFirstTiles;
  static constexpr int kRegisters = 184, kCopyRegisters = 136;  // of a thread; 168 of 384 threads
};

// Barriers of the hardware. A stage has two parts, q with k, and v, which arrive and are given back one after the
// other. Three users read them: the warpgroups, and the warp of the last queries.
struct FwdWgmmaBarriers {
  static constexpr int kGroupThreads = kWarpgroupWarps * kWarpSize, kUsers = kWgmmaGroups + 1;
  static constexpr int kEmptyThreads = kWgmmaGroups * kGroupThreads + 2 * kWarpSize;  // users, and the warp that copies
  static constexpr int kFullGroupThreads = kGroupThreads + kWarpSize, kFullWarpThreads = 2 * kWarpSize;
  static __device__ __forceinline__ int full(int stage, bool is_v, int user) {
    return (2 * stage + is_v) * kUsers + user;
  }
  static __device__ __forceinline__ int empty(int stage, bool is_v) {
    return 2 * kWgmmaStages * kUsers + 2 * stage + is_v;
  }
};

struct FwdWgmmaStage {
  SmemTile<64> queries, keys, values;
};

template <typename Traits>
__device__ __forceinline__ FwdWgmmaStage stage_tiles(int stage, const ShortAttentionFwdPlan& plan) {
  const SmemTile<64> first{smem_address(dynamic_smem()) + stage * (plan.smem_bytes / Traits::kStages)};
  return {first.below(2 * plan.key_rows), first, first.below(plan.key_rows)};
}

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

// The heads of a block, one after the other: b is params.batch or more after the last.
struct FwdHeads {
  int b, h, step_b, step_h, heads;

  __device__ __forceinline__ FwdHeads(int heads, int first, int step)
      : b(first / heads), h(first % heads), step_b(step / heads), step_h(step % heads), heads(heads) {}
  __device__ __forceinline__ void advance() {
    b += step_b;
    h += step_h;
    if (h >= heads) {
      h -= heads;
      ++b;
    }
  }
};

template <typename Traits>
__device__ __forceinline__ FwdHeads heads_of_stage(const ShortAttentionFwdParams& params, int stage) {
  return {params.heads, block_index() + stage * grid_size(), Traits::kStages * grid_size()};
}

// Tells the users of a part that it has arrived.
__device__ __forceinline__ void hand_over(int stage, bool is_v) {
  using Barriers = FwdWgmmaBarriers;
  fence_async_proxy();
#pragma unroll
  for (int group = 0; group < kWgmmaGroups; ++group)
    barrier_arrive(Barriers::full(stage, is_v, group), Barriers::kFullGroupThreads);
  barrier_arrive(Barriers::full(stage, is_v, kWgmmaGroups), Barriers::kFullWarpThreads);
}

// Copies the heads of one stage.
template <typename Traits>
__device__ __forceinline__ void copy_heads(const ShortAttentionFwdParams& params, const ShortAttentionFwdPlan& plan,
                                           int stage) {
  using T = typename Traits::Element;
  using Barriers = FwdWgmmaBarriers;
  const FwdWgmmaStage at = stage_tiles<Traits>(stage, plan);
  // The first head goes before the second. Nobody has begun to use this barrier.
  if (stage == 1) barrier_sync(Barriers::empty(1, false), 2 * kWarpSize);
  bool is_first = true;
  for (FwdHeads head = heads_of_stage<Traits>(params, stage); head.b < params.batch; head.advance()) {
    if (!is_first) barrier_sync(Barriers::empty(stage, false), Barriers::kEmptyThreads);
    load_rows_by_warp(at.queries, head_rows<T>(params.q, head.b, head.h), params.q.token_stride, plan.query_rows,
                      params.num_queries);
    load_rows_by_warp(at.keys, head_rows<T>(params.k, head.b, head.h), params.k.token_stride, plan.key_rows,
                      params.num_keys);
    cp_async_commit();
    if (!is_first) barrier_sync(Barriers::empty(stage, true), Barriers::kEmptyThreads);
    load_rows_by_warp(at.values, head_rows<T>(params.v, head.b, head.h), params.v.token_stride, plan.key_rows,
                      params.num_keys);
    cp_async_commit();
    if (is_first && stage == 0) barrier_arrive(Barriers::empty(1, false), 2 * kWarpSize);
    is_first = false;
    cp_async_wait<1>();
    hand_over(stage, false);
    cp_async_wait<0>();
    hand_over(stage, true);
  }
}

// Computes the last queries of the heads of one stage.
template <typename Traits>
__device__ __forceinline__ void take_last_queries(const ShortAttentionFwdParams& params,
                                                  const ShortAttentionFwdPlan& plan, int stage) {
  using Barriers = FwdWgmmaBarriers;
  const FwdWgmmaStage at = stage_tiles<Traits>(stage, plan);
  constexpr int kFirst = kWgmmaTiles * kWarpgroupRows, kFirstKeys = Traits::kFirstTiles * kTileRows;
  const float scale_log2 = params.softmax_scale * kLog2E;
  FwdHeads head = heads_of_stage<Traits>(params, stage);
#pragma unroll 1
  while (head.b < params.batch) {
    barrier_sync(Barriers::full(stage, false, Traits::kGroups), Barriers::kFullWarpThreads);
    barrier_sync(Barriers::full(stage, true, Traits::kGroups), Barriers::kFullWarpThreads);
    const int b = head.b, h = head.h;
    head.advance();
    const bool goes_on = head.b < params.batch;
    FwdRows<Traits> rows;
    if (params.num_keys > kFirstKeys)  // always true; keeps the code of the slabs apart
      fwd_slab<Traits, Traits::kFirstTiles, Traits::kFirstTiles, true>(rows, at.queries.below(kFirst), at.keys,
                                                                       at.values, kFirstKeys, scale_log2, [] {});
    fwd_slab<Traits, Traits::kSureTiles, Traits::kSureTiles, false>(
        rows, at.queries.below(kFirst), at.keys.below(kFirstKeys), at.values.below(kFirstKeys),
        params.num_keys - kFirstKeys, scale_log2, [&] {
          if (goes_on) barrier_arrive(Barriers::empty(stage, false), Barriers::kEmptyThreads);
        });
    if (goes_on) barrier_arrive(Barriers::empty(stage, true), Barriers::kEmptyThreads);
    store_out<Traits>(rows, params, b, h, kFirst);
  }
}

template <typename Traits>
using FwdWgmmaScores = float[2][Traits::kBlocks][4];

// Masks the scores of keys from `num_keys` on, which are among the last 16.
template <typename Traits>
__device__ __forceinline__ void mask_last_scores(FwdWgmmaScores<Traits>& scores, int num_keys) {
#pragma unroll
  for (int j = Traits::kBlocks - 2; j < Traits::kBlocks; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int key = (Traits::kBlocks + j) * 8 + 2 * (fresh_lane() % 4) + i % 2;
      if (key >= num_keys) scores[1][j][i] = negative_infinity();
    }
  }
}

template <int kBlocks>
__device__ __forceinline__ void raise_maximum(float (&maximum)[2], const float (&scores)[kBlocks][4]) {
#pragma unroll
  for (int i = 0; i < 4 * kBlocks; ++i) maximum[i / 2 % 2] = fmaxf(maximum[i / 2 % 2], scores[i / 4][i % 4]);
}

// Replaces the scores of steps [kFirst, kEnd) of 16 keys by probabilities, and adds these up.
template <typename Traits, int kFirst, int kEnd>
__device__ __forceinline__ void form_probabilities(uint32_t (&p)[Traits::kSteps][4], float (&sum)[2],
                                                   const FwdWgmmaScores<Traits>& scores, const float (&maximum)[2],
                                                   float scale_log2) {
#pragma unroll
  for (int step = kFirst; step < kEnd; ++step) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int block = 2 * step + i / 2;
      const float* pair = &scores[block / Traits::kBlocks][block % Traits::kBlocks][i % 2 * 2];
      const float low = fast_exp2(pair[0] * scale_log2 - maximum[i % 2]);
      const float high = fast_exp2(pair[1] * scale_log2 - maximum[i % 2]);
      sum[i % 2] += low;
      sum[i % 2] += high;
      p[step][i] = pack2<typename Traits::Element>(low, high);
    }
  }
}

template <typename Traits, int kFirst, int kEnd>
__device__ __forceinline__ void multiply_values(float (&out)[8][4], const uint32_t (&p)[Traits::kSteps][4],
                                                SmemTile<64> values) {
  const uint64_t b = warpgroup_descriptor(values.address);
  warpgroup_fence();
#pragma unroll
  for (int step = kFirst; step < kEnd; ++step)
    warpgroup_ab<typename Traits::Element>(out, p[step], b + step * (kTileRows * values.kRowBytes / 16), step > 0);
  warpgroup_commit();
}

// Starts the products of the queries with half of the keys.
template <typename Traits>
__device__ __forceinline__ void multiply_keys(float (&scores)[Traits::kBlocks][4], SmemTile<64> queries,
                                              SmemTile<64> keys) {
  const uint64_t a = warpgroup_descriptor(queries.address), b = warpgroup_descriptor(keys.address);
  warpgroup_fence();
#pragma unroll
  for (int step = 0; step < 4; ++step)
    warpgroup_abt<typename Traits::Element>(scores, a + 2 * step, b + 2 * step, step > 0);
  warpgroup_commit();
}

// The results of a warp's 16 queries, as FwdRows has them.
struct FwdWgmmaRows {
  float maximum[2], sum[2], out[8][4];
};

// Takes 64 queries. Calls have_values() before values are read, and have_read_keys() after queries and keys were.
template <typename Traits, typename F, typename G>
__device__ __forceinline__ void take_tile(FwdWgmmaRows& rows, SmemTile<64> queries, const FwdWgmmaStage& at,
                                          int num_keys, float scale_log2, const F& have_values,
                                          const G& have_read_keys) {
  FwdWgmmaScores<Traits> scores;
  multiply_keys<Traits>(scores[0], queries, at.keys);
  multiply_keys<Traits>(scores[1], queries, at.keys.below(Traits::kBlocks * 8));
  float maximum[2] = {negative_infinity(), negative_infinity()};
  warpgroup_wait<1>(scores[0]);
  raise_maximum(maximum, scores[0]);
  warpgroup_wait<0>(scores[1]);
  have_read_keys();
  mask_last_scores<Traits>(scores, num_keys);
  raise_maximum(maximum, scores[1]);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float value = maximum[half];
    value = fmaxf(value, shfl_xor(value, 1));
    rows.maximum[half] = maximum[half] = fmaxf(value, shfl_xor(value, 2)) * scale_log2;
    rows.sum[half] = 0.0f;
  }
  uint32_t p[Traits::kSteps][4];
  form_probabilities<Traits, 0, Traits::kFirstSteps>(p, rows.sum, scores, maximum, scale_log2);
  have_values();
  multiply_values<Traits, 0, Traits::kFirstSteps>(rows.out, p, at.values);
  form_probabilities<Traits, Traits::kFirstSteps, Traits::kSteps>(p, rows.sum, scores, maximum, scale_log2);
  multiply_values<Traits, Traits::kFirstSteps, Traits::kSteps>(rows.out, p, at.values);
  warpgroup_wait<0>(rows.out);
}

// The warp's index in its warpgroup, computed where it is used; see fresh_lane.
__device__ __forceinline__ int fresh_warp() { return opaque(warp_index()) % uint32_t(kWarpgroupWarps); }

template <typename Traits>
__device__ __forceinline__ void take_heads(const ShortAttentionFwdParams& params, const ShortAttentionFwdPlan& plan,
                                           int group) {
  using Barriers = FwdWgmmaBarriers;
  constexpr int kGroups = Traits::kGroups, kStages = Traits::kStages;
  const float scale_log2 = params.softmax_scale * kLog2E;
  const int count = ceil_div(params.batch * params.heads - block_index(), grid_size());
  FwdHeads head(params.heads, block_index(), grid_size());
  int tile = kGroups - 1 - group;
  for (int n = 0; n < count; ++n, tile -= kWgmmaTiles) {
    const int stage = n % kStages;
    const bool goes_on = n + kStages < count;  // another head comes to this stage
    const FwdWgmmaStage at = stage_tiles<Traits>(stage, plan);
    barrier_sync(Barriers::full(stage, false, group), Barriers::kFullGroupThreads);
    bool has_values = false;
#pragma unroll 1
    for (; tile < kWgmmaTiles; tile += kGroups) {
      const bool is_last = tile + kGroups >= kWgmmaTiles;
      FwdWgmmaRows rows;
      take_tile<Traits>(
          rows, at.queries.below(tile * kWarpgroupRows), at, params.num_keys, scale_log2,
          [&] {
            if (!has_values) barrier_sync(Barriers::full(stage, true, group), Barriers::kFullGroupThreads);
            has_values = true;
          },
          [&] {
            if (is_last && goes_on) barrier_arrive(Barriers::empty(stage, false), Barriers::kEmptyThreads);
          });
      if (is_last && goes_on) barrier_arrive(Barriers::empty(stage, true), Barriers::kEmptyThreads);
      store_row_tile<typename Traits::Element, 64>(rows.maximum, rows.sum, rows.out, params, head.b, head.h,
                                                   tile * kWarpgroupRows + fresh_warp() * kTileRows);
    }
    head.advance();
  }
}

template <typename Traits>
__global__ void __launch_bounds__(Traits::kThreads, 1)
    short_attention_fwd_wgmma_kernel(const ShortAttentionFwdParams params, const ShortAttentionFwdPlan plan) {
  if constexpr (kHasWarpgroups) {
    const int warp = shfl(warp_index(), 0);
    const int group = warp / kWarpgroupWarps - 1, stage = warp % Traits::kStages;
    if (group >= 0) {
      raise_registers<Traits::kRegisters>();
      take_heads<Traits>(params, plan, group);
    } else {
      lower_registers<Traits::kCopyRegisters>();
      if (warp < Traits::kStages) {
        copy_heads<Traits>(params, plan, stage);
      } else {
        take_last_queries<Traits>(params, plan, stage);
      }
    }
  }
}

template <typename Traits>
const char* launch_fwd_wgmma(const ShortAttentionFwdParams& params, const ShortAttentionFwdPlan& plan, void* stream) {
  return launch(short_attention_fwd_wgmma_kernel<Traits>, Grid{plan.blocks, 1, 1}, Traits::kThreads, plan.smem_bytes,
                stream, params, plan);
}

}  // namespace lgfast
