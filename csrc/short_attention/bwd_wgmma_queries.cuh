// What the warpgroup of the queries forms in the backward kernel by warpgroups: dq, and dk and dv of the last keys. Its
// sums are transposed, [D][queries or keys]: D is the 64 rows of a product.
#pragma once

#include "short_attention/bwd_wgmma_block.cuh"

namespace lgfast {

// Writes p^T and ds^T of the last keys and the 16 queries of a slab from `row` on, by one warp.
template <typename Traits>
__device__ __forceinline__ void form_last_scores(const BwdWgmmaMemory& at, int step, int count, int row, int num_keys,
                                                 float scale_log2) {
  using T = typename Traits::Element;
  const auto keys = at.keys(count).below(Traits::kLastKeys), values = at.values(count).below(Traits::kLastKeys);
  const auto queries = at.queries(step).below(row), douts = at.douts(step).below(row);
  float p[1][2][4] = {}, ds[1][2][4] = {};
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    uint32_t a[1][4], b[1][4];
    load_a_step(a, keys, k);
    load_a_step(b, values, k);
    multiply_abt_step<T>(p, a, queries, k);
    multiply_abt_step<T>(ds, b, douts, k);
  }
  score_gradients(p, ds, at.stats(step) + row, scale_log2);
  clear_rows<1, 2>(p, num_keys - Traits::kLastKeys);
  clear_rows<1, 2>(ds, num_keys - Traits::kLastKeys);
  uint32_t a[4];
  const int lane_row = fresh_lane() % 16, chunk = fresh_lane() / 16;
  pack_a<T>(a, p[0]);
  stmatrix_x4(at.scores(step).below(row).at(lane_row, BwdWgmmaMemory::kLastChunk + chunk), a);
  pack_a<T>(a, ds[0]);
  stmatrix_x4(at.scores(step).below(Traits::kLastKeys).at(lane_row, row / 8 + chunk), a);
}

// Writes factor times a warpgroup's sums [D][8 kBlocks] to rows of shared memory, transposed.
template <typename T, int kBlocks>
__device__ __forceinline__ void stage_transposed(SmemTile<64> tile, const float (&sums)[kBlocks][4], float factor) {
  const int lane = fresh_lane();
  const uint32_t to = tile.at(lane % 8 + lane / 16 * 8, 2 * fresh_warp() + lane / 8 % 2);
#pragma unroll
  for (int block = 0; block < kBlocks; block += 2) {
    uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float* pair = &sums[block + i / 2][i % 2 * 2];
      words[i] = pack2<T>(pair[0] * factor, pair[1] * factor);
    }
    stmatrix_x4_trans(to + block * 8 * tile.kRowBytes, words);
  }
}

// Adds up the first columns of a warpgroup's sums [D][8 kBlocks], this lane's share: of rows g and g + 8 of a warp.
template <int kBlocks>
__device__ __forceinline__ void add_columns(float (&total)[2], const float (&sums)[kBlocks][4], int columns) {
#pragma unroll
  for (int i = 0; i < 4 * kBlocks; ++i) {
    if (i / 4 * 8 < columns) total[i / 2 % 2] += sums[i / 4][i % 4];
  }
}

// Writes factor times such shares, added up over lanes, to to[D].
__device__ __forceinline__ void write_columns(float* to, const float (&total)[2], float factor) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float value = total[half];
    value += shfl_xor(value, 1);
    value += shfl_xor(value, 2);
    if (fresh_lane() % 4 == 0) to[fresh_warp() * kTileRows + 8 * half + fresh_lane() / 4] = value * factor;
  }
}

template <typename Traits>
struct BwdWgmmaQueries {
  using T = typename Traits::Element;
  using Barriers = BwdWgmmaBarriers;
  const ShortAttentionBwdParams& params;
  float scale_log2;
  BwdWgmmaMemory at;
  float dk[2][4], dv[2][4];  // of the last keys
  float dq_sums[2];

  // Starts dv^T += dout^T p and dk^T += q^T ds of the last keys.
  __device__ __forceinline__ void add_last_keys(int step, bool adds) {
    const uint64_t p = advance_descriptor(descriptor(at.scores(step)), 16 * BwdWgmmaMemory::kLastChunk);
    const uint64_t ds = descriptor(at.scores(step).below(Traits::kLastKeys));
    const uint64_t q = descriptor(at.queries(step)), dout = descriptor(at.douts(step));
#pragma unroll
    for (int i = 0; i < Traits::kSteps; ++i) {
      warpgroup_atbt<T>(dv, advance_descriptor(dout, i * kTileBytes), advance_descriptor(p, i * kTileBytes),
                        adds || i > 0);
      warpgroup_atbt<T>(dk, advance_descriptor(q, i * kTileBytes), advance_descriptor(ds, 32 * i), adds || i > 0);
    }
  }

  // Starts dq^T = k^T ds^T.
  __device__ __forceinline__ void multiply_scores(float (&dq)[Traits::kBlocks][4], int step, int count) {
    const uint64_t k = descriptor(at.keys(count)), ds = descriptor(at.scores(step));
#pragma unroll
    for (int i = 0; i < kWgmmaKeys / kTileRows; ++i)
      warpgroup_atb<T>(dq, advance_descriptor(k, i * kTileBytes), advance_descriptor(ds, i * kTileBytes), i > 0);
  }

  // The descriptor of a tile, computed where it is used; see fresh_lane.
  static constexpr int kTileBytes = kTileRows * SmemTile<64>::kRowBytes;
  static __device__ __forceinline__ uint64_t descriptor(SmemTile<64> tile) {
    return warpgroup_descriptor(opaque(tile.address));
  }

  // Writes the sums over keys of dk and dv of a head.
  __device__ __forceinline__ void write_key_sums(Head head) {
    float* bias = bias_of(head);
    const int thread = opaque(thread_index()) % uint32_t(Barriers::kGroupThreads);
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < Traits::kSums; ++i) sum += at.sums(i)[thread];
    bias[(1 + thread / 64) * params.heads * 64 + thread % 64] = sum;
  }

  // Forms dq of a slab and stages it. With the first slab of a head the sums of the head before are there.
  __device__ __forceinline__ void finish(Head head, int slab, int step, int count, Head before, bool goes_on) {
    barrier_sync(Barriers::scores(step), Barriers::kScoresThreads);
    float dq[Traits::kBlocks][4];
    warpgroup_fence();
    multiply_scores(dq, step, count);
    add_last_keys(step, slab > 0);
    warpgroup_commit();
    if (params.dbias != nullptr && slab == 0 && count > 0) write_key_sums(before);
    warpgroup_wait<0>(dq);
    warpgroup_wait<0>(dk);
    warpgroup_wait<0>(dv);
    if (goes_on) hand_over<Traits>(step + 2);  // nobody reads ds
    stage_transposed<T>(at.staged(step), dq, params.softmax_scale);
    if (slab == Traits::kSlabs - 1) {
      stage_transposed<T>(at.staged_last(step), dk, params.softmax_scale);
      stage_transposed<T>(at.staged_last(step).below(kTileRows), dv, 1.0f);
    }
    if (params.dbias != nullptr) add_sums(head, slab, dq);
  }

  __device__ __forceinline__ float* bias_of(Head head) const {
    return params.dbias + (int64_t(head.b) * 3 * params.heads + head.h) * 64;
  }

  __device__ __forceinline__ void add_sums(Head head, int slab, const float (&dq)[Traits::kBlocks][4]) {
    if (slab == 0) dq_sums[0] = dq_sums[1] = 0.0f;
    const bool is_last = slab == Traits::kSlabs - 1;
    add_columns(dq_sums, dq, is_last ? kTileRows : Traits::kSlab);
    if (!is_last) return;
    write_columns(bias_of(head), dq_sums, params.softmax_scale);
    float total[2][2] = {};
    add_columns(total[0], dk, kTileRows);
    add_columns(total[1], dv, kTileRows);
    write_columns(at.sums(Traits::kSums - 1), total[0], params.softmax_scale);
    write_columns(at.sums(Traits::kSums - 1) + 64, total[1], 1.0f);
  }
};

// Takes every head as the warpgroup of the queries: forms dq of a slab, then the scores of the last keys with the slab
// two later.
template <typename Traits>
__device__ __forceinline__ void take_queries(const ShortAttentionBwdParams& params, float scale_log2) {
  using Barriers = BwdWgmmaBarriers;
  BwdWgmmaQueries<Traits> work{params, scale_log2, {}, {}, {}, {}};
  BwdWgmmaSlabs<Traits> at(params);
#pragma unroll 1
  for (;; at.advance()) {
    if (at.step < 2 && at.exists()) hand_over<Traits>(at.step);
    if (at.step >= 2)
      work.finish(at.head_of(-2), at.slab_of(-2), at.step - 2, at.count - (at.slab < 2), at.before, at.exists());
    barrier_sync(Barriers::kStaged, Barriers::kStagedThreads);
    if (at.exists()) {
      const int row = fresh_warp() * kTileRows;
      if (row < Traits::kSlab) form_last_scores<Traits>(work.at, at.step, at.count, row, params.num_keys, scale_log2);
      fence_async_proxy();
    } else if (at.slab == 1) {
      break;
    }
  }
  barrier_sync(Barriers::kSums, Barriers::kScoresThreads);
  if (params.dbias != nullptr) work.write_key_sums(at.before);
}

}  // namespace lgfast
