// What the warpgroups of the keys form in the backward kernel by warpgroups: dk and dv.
#pragma once

#include "short_attention/bwd_wgmma_block.cuh"

namespace lgfast {

// Starts sums = rows of 64 keys times the queries of a slab, transposed: s^T of k and q, or dp^T of v and dout.
template <typename T, int kBlocks>
__device__ __forceinline__ void multiply_slab(float (&sums)[kBlocks][4], SmemTile<64> keys, SmemTile<64> queries) {
  const uint64_t a = warpgroup_descriptor(keys.address), b = warpgroup_descriptor(queries.address);
#pragma unroll
  for (int step = 0; step < 4; ++step)
    warpgroup_abt<T>(sums, advance_descriptor(a, 32 * step), advance_descriptor(b, 32 * step), step > 0);
}

// Starts sums += p^T times the rows of a slab.
template <typename T, int kSteps>
__device__ __forceinline__ void add_slab(float (&sums)[8][4], const uint32_t (&p)[kSteps][4], SmemTile<64> rows) {
  const uint64_t b = warpgroup_descriptor(rows.address);
#pragma unroll
  for (int step = 0; step < kSteps; ++step)
    warpgroup_ab<T>(sums, p[step], advance_descriptor(b, step * kTileRows * rows.kRowBytes), true);
}

// Takes s^T and dp^T. Returns p^T and ds^T as operands of products over the queries.
template <typename Traits, int kSteps, int kBlocks>
__device__ __forceinline__ void form_operands(uint32_t (&p)[kSteps][4], uint32_t (&ds)[kSteps][4],
                                              const float (&scores)[kBlocks][4], const float (&dp)[kBlocks][4],
                                              const QueryStats* stats, float scale_log2) {
  using T = typename Traits::Element;
  stats += 2 * (fresh_lane() % 4);
#pragma unroll
  for (int block = 0; block < kBlocks; ++block) {
    const QueryStatsPair two = *reinterpret_cast<const QueryStatsPair*>(stats + 8 * block);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float probability[2], gradient[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        probability[i] = fast_exp2(scores[block][2 * half + i] * scale_log2 - two.stats[i].lse_log2);
        gradient[i] = probability[i] * (dp[block][2 * half + i] - two.stats[i].delta);
      }
      p[block / 2][block % 2 * 2 + half] = pack2<T>(probability[0], probability[1]);
      ds[block / 2][block % 2 * 2 + half] = pack2<T>(gradient[0], gradient[1]);
    }
  }
}

// Where a warpgroup's 64 keys, and a slab of queries, lie in shared memory.
struct BwdWgmmaTiles {
  SmemTile<64> keys, values, queries, douts, scores;  // scores: of this warp's 16 keys
  const QueryStats* stats;

  // Of the queries from `row` on.
  __device__ __forceinline__ BwdWgmmaTiles from(int row) const {
    return {keys, values, queries.below(row), douts.below(row), scores, stats + row};
  }
};

// Starts s^T and dp^T with the next 8 kBlocks queries.
template <typename T, int kBlocks>
__device__ __forceinline__ void start_scores(float (&scores)[kBlocks][4], float (&dp)[kBlocks][4],
                                             const BwdWgmmaTiles& at) {
  warpgroup_fence();
  multiply_slab<T>(scores, at.keys, at.queries);
  multiply_slab<T>(dp, at.values, at.douts);
  warpgroup_commit();
}

// Takes s^T and dp^T of queries from `row` of a slab on: forms p^T and ds^T, and writes ds^T to shared memory.
template <typename Traits, int kSteps>
__device__ __forceinline__ void take_scores(uint32_t (&p)[kSteps][4], uint32_t (&ds)[kSteps][4],
                                            const float (&scores)[2 * kSteps][4], const float (&dp)[2 * kSteps][4],
                                            const BwdWgmmaTiles& at, int row, float scale_log2) {
  form_operands<Traits>(p, ds, scores, dp, at.stats, scale_log2);
  const int lane = fresh_lane();
#pragma unroll
  for (int i = 0; i < kSteps; ++i) stmatrix_x4(at.scores.at(lane % 16, row / 8 + 2 * i + lane / 16), ds[i]);
}

// Starts dv += p^T dout and dk += ds^T q of 16 queries.
template <typename T>
__device__ __forceinline__ void start_sums(float (&dk)[8][4], float (&dv)[8][4], const uint32_t (&p)[1][4],
                                           const uint32_t (&ds)[1][4], const BwdWgmmaTiles& at) {
  warpgroup_fence();
  add_slab<T>(dv, p, at.douts);
  add_slab<T>(dk, ds, at.queries);
  warpgroup_commit();
}

// Adds the share of a slab to dk and dv of 64 keys, and writes their ds^T. The queries are taken 16 at a time, for
// which registers suffice. The scores of the next 16 are formed beside the sums of these.
template <typename Traits>
__device__ __forceinline__ void take_slab(float (&dk)[8][4], float (&dv)[8][4], const BwdWgmmaTiles& at, int step,
                                          int rows, float scale_log2) {
  using T = typename Traits::Element;
  using Barriers = BwdWgmmaBarriers;
  uint32_t p[1][4], ds[1][4];
  float scores[2][4], dp[2][4];
  start_scores<T>(scores, dp, at);
#pragma unroll 1
  for (int row = 0;; row += kTileRows) {
    warpgroup_wait<0>(scores);
    warpgroup_wait<0>(dp);
    if (row > 0) {  // p and ds are read until then
      warpgroup_wait<0>(dv);
      warpgroup_wait<0>(dk);
    }
    const BwdWgmmaTiles now = at.from(row);
    take_scores<Traits, 1>(p, ds, scores, dp, now, row, scale_log2);
    if (row + kTileRows == rows) break;
    start_scores<T>(scores, dp, now.from(kTileRows));
    start_sums<T>(dk, dv, p, ds, now);
  }
  start_sums<T>(dk, dv, p, ds, at.from(rows - kTileRows));
  fence_async_proxy();
  barrier_arrive(Barriers::scores(step), Barriers::kScoresThreads);
  warpgroup_wait<0>(dv);
  warpgroup_wait<0>(dk);
}

// Stores factor times a warp's 16 keys of dk or dv, by way of 16 rows of shared memory, and the sums of those that
// exist in sums[D], unless that is nullptr.
template <typename T>
__device__ __forceinline__ void write_keys(float (&acc)[1][8][4], float factor, SmemTile<64> tile,
                                           const HeadsOutput& view, Head head, int first, float* sums) {
  sync_warp();
#pragma unroll
  for (int block = 0; block < 8; block += 2) {
    uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float* pair = &acc[0][block + i / 2][i % 2 * 2];
      words[i] = pack2<T>(pair[0] * factor, pair[1] * factor);
    }
    stmatrix_x4(tile.at(fresh_lane() % 16, block + fresh_lane() / 16), words);
  }
  sync_warp();
  const int row = fresh_lane() / 8, chunk = fresh_lane() % 8;
  T* to = head_rows<T>(view, head.b, head.h) + (first + row) * view.token_stride + 8 * chunk;
#pragma unroll
  for (int i = 0; i < kTileRows; i += 4) {
    const uint32_t from = tile.at(row + i, chunk) - smem_address(dynamic_smem());
    *reinterpret_cast<Vector16*>(to) = *reinterpret_cast<const Vector16*>(dynamic_smem() + from);
    to += 4 * view.token_stride;
  }
  if (sums == nullptr) return;
  LaneColumnSums<64> columns;
  columns.add(acc);
  columns.reduce([&](int column, float sum) { sums[column] = sum * factor; });
}

// Takes every head as the warpgroup of 64 keys.
template <typename Traits>
__device__ __forceinline__ void take_keys(const ShortAttentionBwdParams& params, int group, float scale_log2) {
  using T = typename Traits::Element;
  using Barriers = BwdWgmmaBarriers;
  const BwdWgmmaMemory memory;
  const int key = group * kWarpgroupRows;
  int step = 0;
#pragma unroll 1
  for (int index = block_index(); index < params.batch * params.heads; index += grid_size()) {
    const int count = step / Traits::kSlabs;
    float dk[1][8][4] = {}, dv[1][8][4] = {};
#pragma unroll 1
    for (int slab = 0; slab < Traits::kSlabs; ++slab, ++step) {
      const BwdWgmmaTiles at{memory.keys(count).below(key),
                             memory.values(count).below(key),
                             memory.queries(step),
                             memory.douts(step),
                             memory.scores(step).below(key + fresh_warp() * kTileRows),
                             memory.stats(step)};
      barrier_sync(Barriers::full(step, group), Barriers::kFullThreads);
      take_slab<Traits>(dk[0], dv[0], at, step, slab < Traits::kSlabs - 1 ? Traits::kSlab : kTileRows, scale_log2);
    }
    const Head head = head_at(index, params.heads);
    const int warp = group * kWarpgroupWarps + fresh_warp(), first = warp * kTileRows;
    const auto tile = memory.values(count).below(first);  // nobody else reads these rows, and no product any more
    float* sums = params.dbias != nullptr ? memory.sums(warp) : nullptr;
    write_keys<T>(dk, params.softmax_scale, tile, params.dk, head, first, sums);
    write_keys<T>(dv, 1.0f, tile, params.dv, head, first, sums != nullptr ? sums + Traits::kD : nullptr);
  }
  barrier_arrive(Barriers::kSums, Barriers::kScoresThreads);
}

}  // namespace lgfast
