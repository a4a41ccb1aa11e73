// What the two backward kernels of short_attention share: statistics of the queries, sums and stores of gradients.
#pragma once

#include "short_attention/tiles.cuh"

namespace lgfast {

// The statistics of a query that backward needs.
struct alignas(8) QueryStats {
  float lse_log2;  // infinity beyond N: the probability there is zero
  float delta;
};
struct alignas(16) QueryStatsPair {
  QueryStats stats[2];
};

// Takes the scores s = k q^T in p, and dp in ds, both [key][query] of 16 queries. Replaces them with p and ds.
template <int kTiles>
__device__ __forceinline__ void score_gradients(float (&p)[kTiles][2][4], float (&ds)[kTiles][2][4],
                                                const QueryStats* stats, float scale_log2) {
  QueryStatsPair two[2];  // this lane's columns
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    two[j] = *reinterpret_cast<const QueryStatsPair*>(stats + 8 * j + 2 * (lane_index() % 4));
  }
#pragma unroll
  for (int i = 0; i < kTiles * 8; ++i) {
    const QueryStats& query = two[i / 4 % 2].stats[i % 2];
    float& probability = p[i / 8][i / 4 % 2][i % 4];
    float& gradient = ds[i / 8][i / 4 % 2][i % 4];
    probability = fast_exp2(probability * scale_log2 - query.lse_log2);
    gradient = probability * (gradient - query.delta);
  }
}

// Sums kCount values over the lanes that differ in bits 4 ... kMask of their index. While the count is even, pairs of
// lanes exchange halves and each goes on with one half. Returns the index of the first value that this lane ends with.
template <int kMask, int kCount>
__device__ __forceinline__ int reduce_scatter(float* values) {
  const bool upper = fresh_lane() & kMask;
  constexpr int kHalf = kCount % 2 == 0 ? kCount / 2 : 0, kLeft = kHalf > 0 ? kHalf : kCount;
#pragma unroll
  for (int i = 0; i < kLeft; ++i) {
    const float mine = upper ? values[i + kHalf] : values[i], other = upper ? values[i] : values[i + kHalf];
    values[i] = mine + shfl_xor(other, kMask);
  }
  const int first = upper ? kHalf : 0;
  if constexpr (kMask > 4) {
    return first + reduce_scatter<kMask / 2, kLeft>(values);
  } else {
    return first;
  }
}

// Zeroes the rows of a warp's gradient from `rows` on: those of tokens that do not exist.
template <int kTiles, int kColumnTiles>
__device__ __forceinline__ void clear_rows(float (&acc)[kTiles][kColumnTiles][4], int rows) {
  if (rows >= kTiles * kTileRows) return;
#pragma unroll
  for (int i = 0; i < kTiles * kColumnTiles * 4; ++i) {
    const int r = i / (kColumnTiles * 4), row = r * kTileRows + 8 * (i / 2 % 2) + fresh_lane() / 4;
    if (row >= rows) acc[r][i / 4 % kColumnTiles][i % 4] = 0.0f;
  }
}

// One lane's sums over the rows of a gradient, for the two columns that it holds of each tile of eight.
template <int kD>
struct LaneColumnSums {
  static constexpr int kColumns = kD / 4;
  float values[kColumns] = {};

  template <int kTiles>
  __device__ __forceinline__ void add(const float (&acc)[kTiles][kD / 8][4]) {
#pragma unroll
    for (int i = 0; i < kTiles * kColumns; ++i) {
      const float* tile = acc[i / kColumns][i % kColumns / 2];
      values[i % kColumns] += tile[i % 2] + tile[2 + i % 2];
    }
  }

  // Adds up the sums of the warp's lanes. One lane for each column calls take(column, sum).
  template <typename F>
  __device__ __forceinline__ void reduce(const F& take) {
    // The number of sums that a lane ends with. With D = 48 two lanes end with the same sums.
    constexpr int kSums = kColumns % 8 == 0 ? kColumns / 8 : kColumns / 4;
    const int own = reduce_scatter<kWarpSize / 2, kColumns>(values);
    if (kSums * 8 > kColumns && fresh_lane() / 4 % 2 == 1) return;
#pragma unroll
    for (int i = 0; i < kSums; ++i) {
      const int column = (own + i) / 2 * 8 + 2 * (fresh_lane() % 4) + (own + i) % 2;
      take(column, values[i]);
    }
  }
};

// Stores factor times a warp's rows [first, limit) of a gradient.
template <typename T, int kTiles, int kColumnTiles>
__device__ __forceinline__ void store_gradient(T* head, int64_t token_stride,
                                               const float (&acc)[kTiles][kColumnTiles][4], float factor, int first,
                                               int limit) {
#pragma unroll
  for (int r = 0; r < kTiles; ++r) {
    store_rows<T, 8 * kColumnTiles>(head, token_stride, acc[r], factor, factor, first + r * kTileRows, limit);
  }
}

}  // namespace lgfast
