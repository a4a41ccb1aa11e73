// A tile of 64 queries in forward by warpgroups.
#pragma once

#include "short_attention/fwd_wgmma_block.cuh"

namespace lgfast {

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
  for (int i = 0; i < 2 * kBlocks; ++i)
    maximum[i % 2] = fmaxf(maximum[i % 2], fmaxf(scores[i / 2][i % 2 * 2], scores[i / 2][i % 2 * 2 + 1]));
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
      sum[i % 2] += low + high;
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

// Takes tile `tile` of the block's n-th head. If it is the warpgroup's last of the head, gives the rows back.
template <typename Traits>
__device__ __forceinline__ void take_tile(FwdWgmmaRows& rows, const FwdPlaces& places, int n, int tile, bool is_last,
                                          int num_keys, float scale_log2) {
  const SmemTile<64> queries = places.tile(n, kQueriesPart).below(tile * kWarpgroupRows);
  FwdWgmmaScores<Traits> scores;
  const SmemTile<64> keys = places.tile(n, kKeysPart);
  multiply_keys<Traits>(scores[0], queries, keys);
  multiply_keys<Traits>(scores[1], queries, keys.below(Traits::kBlocks * 8));
  float maximum[2] = {negative_infinity(), negative_infinity()};
  warpgroup_wait<1>(scores[0]);
  raise_maximum(maximum, scores[0]);
  warpgroup_wait<0>(scores[1]);
  // The compiler would move an arrival behind the arithmetic that follows, but not a loop, of one pass or none.
#pragma unroll 1
  for (int left = opaque(is_last); left > 0; --left) {
    places.give_back(n, kKeysPart);
    places.give_back(n, kQueriesPart);
  }
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
  places.await(n, kValuesPart);
  multiply_values<Traits, 0, Traits::kFirstSteps>(rows.out, p, places.tile(n, kValuesPart));
  form_probabilities<Traits, Traits::kFirstSteps, Traits::kSteps>(p, rows.sum, scores, maximum, scale_log2);
  multiply_values<Traits, Traits::kFirstSteps, Traits::kSteps>(rows.out, p, places.tile(n, kValuesPart));
  warpgroup_wait<0>(rows.out);
  if (is_last) places.give_back(n, kValuesPart);
}

// Stores out and lse of a warp's 16 queries from `first` on, all of which there are. Eight at a time, they go through
// `rows`, 1 KB of the warp's own, so that whole rows of 128 bytes go to memory.
template <typename T>
__device__ __forceinline__ void store_whole_rows(const FwdWgmmaRows& results, SmemTile<64> rows,
                                                 const ShortAttentionFwdParams& params, int b, int h, int first) {
  float* lse = params.lse + (int64_t(b) * params.heads + h) * params.num_queries + first;
  const int lane = fresh_lane();
  T* out = head_rows<T>(params.out, b, h) + (first + lane / 8) * params.out.token_stride + 8 * (lane % 8);
  const uint32_t to = rows.at(lane % 8, lane / 8);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float total = results.sum[half];
    total += shfl_xor(total, 1);
    total += shfl_xor(total, 2);
    const float inverse = fast_reciprocal(total);
    if (lane % 4 == 0) lse[lane / 4 + 8 * half] = (results.maximum[half] + fast_log2(total)) * kLn2;
#pragma unroll
    for (int j = 0; j < 8; j += 4) {
      uint32_t words[4];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        words[i] = pack2<T>(results.out[j + i][2 * half] * inverse, results.out[j + i][2 * half + 1] * inverse);
      stmatrix_x4(rows.advance(to, j), words);
    }
    sync_warp();
#pragma unroll
    for (int row = 0; row < 8; row += 4) {
      store_global_16(out, load_smem_16(rows.at(row + lane / 8, lane % 8)));
      out += 4 * params.out.token_stride;
    }
    sync_warp();
  }
}

}  // namespace lgfast
