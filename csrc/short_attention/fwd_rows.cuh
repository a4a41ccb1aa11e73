// The rows of one warp in forward: scores with a slab of keys, online softmax, the sums of values, and the results.
//
// Traits has Element, kD, kRowTiles (tiles of 16 queries a warp holds), and kSureTiles: tiles of 16 keys before which
// no key of the last slab is masked.
#pragma once

#include "short_attention/tiles.cuh"

namespace lgfast {

// The running state of one warp's rows: maximum and sum of the scores, unnormalised output.
template <typename Traits>
struct FwdRows {
  float maximum[Traits::kRowTiles][2];  // of the scores in units of log2; rows g and g + 8
  float sum[Traits::kRowTiles][2];      // this lane's share until reduced over its quad
  float out[Traits::kRowTiles][Traits::kD / 8][4];

  __device__ __forceinline__ FwdRows() {
#pragma unroll
    for (int r = 0; r < Traits::kRowTiles; ++r) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        maximum[r][half] = negative_infinity();
        sum[r][half] = 0.0f;
      }
#pragma unroll
      for (int j = 0; j < Traits::kD / 8; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) out[r][j][i] = 0.0f;
      }
    }
  }
};

template <typename Traits>
using FwdTile = SmemTile<Traits::kD>;
template <typename Traits, int kTiles>
using FwdScores = float[kTiles][Traits::kRowTiles][2][4];

// Masks the scores of keys from `keys_left` on. The tiles before the last sure one have no such keys.
template <typename Traits, int kTiles>
__device__ __forceinline__ void mask_scores(FwdScores<Traits, kTiles>& scores, int keys_left) {
#pragma unroll
  for (int t = Traits::kSureTiles - 1; t < kTiles; ++t) {
#pragma unroll
    for (int i = 0; i < Traits::kRowTiles * 8; ++i) {
      const int key = t * kTileRows + 8 * (i / 4 % 2) + 2 * (lane_index() % 4) + i % 2;
      if (key >= keys_left) scores[t][i / 8][i / 4 % 2][i % 4] = negative_infinity();
    }
  }
}

// Updates the rows' maximum with the scores of a slab, and rescales the sums of earlier slabs to it.
template <typename Traits, int kTiles, bool kIsFirst>
__device__ __forceinline__ void update_maximum(FwdRows<Traits>& rows, const FwdScores<Traits, kTiles>& scores,
                                               int tiles, float scale_log2) {
  float maximum[Traits::kRowTiles][2];
#pragma unroll
  for (int i = 0; i < Traits::kRowTiles * 2; ++i) maximum[i / 2][i % 2] = negative_infinity();
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
    if (t >= tiles) continue;
#pragma unroll
    for (int i = 0; i < Traits::kRowTiles * 8; ++i) {
      float& value = maximum[i / 8][i / 2 % 2];
      value = fmaxf(value, scores[t][i / 8][i / 4 % 2][i % 4]);
    }
  }
#pragma unroll
  for (int i = 0; i < Traits::kRowTiles * 2; ++i) {
    const int r = i / 2, half = i % 2;
    float value = maximum[r][half];
    value = fmaxf(value, shfl_xor(value, 1));
    value = fmaxf(value, shfl_xor(value, 2)) * scale_log2;
    if constexpr (!kIsFirst) {
      value = fmaxf(value, rows.maximum[r][half]);
      const float factor = fast_exp2(rows.maximum[r][half] - value);
      rows.sum[r][half] *= factor;
#pragma unroll
      for (int j = 0; j < Traits::kD / 8; ++j) {
        rows.out[r][j][2 * half] *= factor;
        rows.out[r][j][2 * half + 1] *= factor;
      }
    }
    rows.maximum[r][half] = value;
  }
}

// Computes the scores of the warp's queries with the keys of the first `tiles` tiles, kSureTiles to kTiles of them.
// Every slab reads the queries from shared memory again, since registers do not suffice to keep them.
template <typename Traits, int kTiles, int kSureTiles>
__device__ __forceinline__ void multiply_queries(FwdScores<Traits, kTiles>& scores, FwdTile<Traits> queries,
                                                 FwdTile<Traits> keys, int tiles) {
  using T = typename Traits::Element;
#pragma unroll
  for (int step = 0; step < Traits::kD / 16; ++step) {
    uint32_t q[Traits::kRowTiles][4];
    load_a_step(q, queries, step);
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      if (t < kSureTiles || t < tiles) multiply_abt_step<T>(scores[t], q, keys, step, t * kTileRows);
    }
  }
}

// Takes the slab of keys at the start of `keys` and `values` into `rows`. Calls have_read_queries() as soon as the
// warp's next queries may be copied over the present ones.
template <typename Traits, int kTiles, int kSureTiles, bool kIsFirst, typename F>
__device__ __forceinline__ void fwd_slab(FwdRows<Traits>& rows, FwdTile<Traits> queries, FwdTile<Traits> keys,
                                         FwdTile<Traits> values, int keys_left, float scale_log2,
                                         const F& have_read_queries) {
  using T = typename Traits::Element;
  const int tiles = kSureTiles < kTiles ? ceil_div(keys_left, kTileRows) : kTiles;
  FwdScores<Traits, kTiles> scores = {};
  multiply_queries<Traits, kTiles, kSureTiles>(scores, queries, keys, tiles);
  have_read_queries();
  if (keys_left < kTiles * kTileRows) mask_scores<Traits, kTiles>(scores, keys_left);
  update_maximum<Traits, kTiles, kIsFirst>(rows, scores, tiles, scale_log2);
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
    if (t >= tiles) continue;
    uint32_t p[Traits::kRowTiles][4];
#pragma unroll
    for (int i = 0; i < Traits::kRowTiles * 8; ++i) {
      const int r = i / 8, half = i / 2 % 2;
      float& score = scores[t][r][i / 4 % 2][i % 4];
      score = fast_exp2(score * scale_log2 - rows.maximum[r][half]);
      rows.sum[r][half] += score;
    }
#pragma unroll
    for (int r = 0; r < Traits::kRowTiles; ++r) pack_a<T>(p[r], scores[t][r]);
    multiply_ab<T>(rows.out, p, values, t * kTileRows);
  }
}

// Stores out and lse of 16 queries from `first` on, by their maximum, this lane's share of their sum, and their
// unnormalised output.
template <typename T, int kHeadDim>
__device__ __forceinline__ void store_row_tile(const float (&maximum)[2], const float (&sum)[2],
                                               const float (&out)[kHeadDim / 8][4],
                                               const ShortAttentionFwdParams& params, int b, int h, int first) {
  float* lse = params.lse + (int64_t(b) * params.heads + h) * params.num_queries;
  float inverse[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float total = sum[half];
    total += shfl_xor(total, 1);
    total += shfl_xor(total, 2);
    inverse[half] = fast_reciprocal(total);
    const int row = first + 8 * half + lane_index() / 4;
    if (lane_index() % 4 == 0 && row < params.num_queries) lse[row] = (maximum[half] + fast_log2(total)) * kLn2;
  }
  store_rows<T, kHeadDim>(head_rows<T>(params.out, b, h), params.out.token_stride, out, inverse[0], inverse[1], first,
                          params.num_queries);
}

template <typename Traits>
__device__ __forceinline__ void store_out(const FwdRows<Traits>& rows, const ShortAttentionFwdParams& params, int b,
                                          int h, int first) {
#pragma unroll
  for (int r = 0; r < Traits::kRowTiles; ++r)
    store_row_tile<typename Traits::Element, Traits::kD>(rows.maximum[r], rows.sum[r], rows.out[r], params, b, h,
                                                         first + r * kTileRows);
}

}  // namespace lgfast
