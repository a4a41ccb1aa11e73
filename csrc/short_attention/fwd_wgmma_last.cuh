// The last queries in forward by warpgroups: one warpgroup takes eight at a time, transposed, as s^T = k q^T and
// out^T = v^T p^T. A tile of 64 queries would multiply eight times as many rows as there are.
#pragma once

#include "short_attention/fwd_wgmma_block.cuh"

namespace lgfast {

constexpr int kAmongLast = 7;  // number of the barrier of the warpgroup

// Shared memory of the warpgroup, near the end of the block's: eight rows of probabilities for every 64 keys, eight
// rows of results, and of each warp the maximum and the sum of each query.
struct FwdLastMemory {
  SmemTile<64> probabilities, results;
  float *maxima, *sums;
};

__device__ __forceinline__ FwdLastMemory last_memory() {
  constexpr int kRows = kLastKeyTiles * kLastQueries;
  unsigned char* first = dynamic_smem() + kWgmmaSmemBytes - kWgmmaBarrierBytes - kWgmmaLastBytes;
  const SmemTile<64> probabilities{smem_address(first)};
  float* numbers = reinterpret_cast<float*>(first + (kRows + kLastQueries) * probabilities.kRowBytes);
  return {probabilities, probabilities.below(kRows), numbers, numbers + kWarpgroupWarps * kLastQueries};
}

// Scores of keys by queries, in tiles of 64 keys. Lane 4 g + c of warp w holds keys 16 w + g and 16 w + g + 8 of a tile
// and queries 2 c and 2 c + 1. The last tile ends with the last key, so most of its keys are in the one before, too.
using FwdLastScores = float[kLastKeyTiles][1][4];
__device__ __forceinline__ constexpr int first_key_of(int tile) {
  return tile < kLastKeyTiles - 1 ? tile * kWarpgroupRows : kWgmmaKeys - kWarpgroupRows;
}
__device__ __forceinline__ int warp_of_group() { return uint32_t(warp_index()) % kWarpgroupWarps; }

template <typename T>
__device__ __forceinline__ void multiply_last_queries(FwdLastScores& scores, SmemTile<64> queries, SmemTile<64> keys) {
  const uint64_t b = warpgroup_descriptor(queries.address);
  warpgroup_fence();
#pragma unroll
  for (int tile = 0; tile < kLastKeyTiles; ++tile) {
    const uint64_t a = warpgroup_descriptor(keys.below(first_key_of(tile)).address);
#pragma unroll
    for (int step = 0; step < 4; ++step) warpgroup_abt<T>(scores[tile], a + 2 * step, b + 2 * step, step > 0);
  }
  warpgroup_commit();
#pragma unroll
  for (int tile = 0; tile < kLastKeyTiles; ++tile) warpgroup_wait<0>(scores[tile]);
}

// Masks the keys from `num_keys` on, and those of the last tile that the one before has.
__device__ __forceinline__ void mask_repeated_keys(FwdLastScores& scores, int num_keys) {
  constexpr int kLast = kLastKeyTiles - 1;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int key = first_key_of(kLast) + warp_of_group() * kTileRows + lane_index() / 4 + i / 2 * 8;
    if (key < kLast * kWarpgroupRows || key >= num_keys) scores[kLast][0][i] = negative_infinity();
  }
}

// Returns the maxima of the lane's two queries over all keys.
__device__ __forceinline__ void find_last_maxima(float (&maximum)[2], const FwdLastScores& scores, float* maxima) {
  const int query = 2 * (lane_index() % 4);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float value = fmaxf(scores[0][0][i], scores[0][0][i + 2]);
#pragma unroll
    for (int tile = 1; tile < kLastKeyTiles; ++tile)
      value = fmaxf(value, fmaxf(scores[tile][0][i], scores[tile][0][i + 2]));
#pragma unroll
    for (int step = 4; step < kWarpSize; step *= 2) value = fmaxf(value, shfl_xor(value, step));
    if (lane_index() < 4) maxima[kLastQueries * warp_of_group() + query + i] = value;
  }
  barrier_sync(kAmongLast, kWarpgroupWarps * kWarpSize);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    maximum[i] = maxima[query + i];
#pragma unroll
    for (int warp = 1; warp < kWarpgroupWarps; ++warp)
      maximum[i] = fmaxf(maximum[i], maxima[kLastQueries * warp + query + i]);
  }
}

// Writes the probabilities, queries by keys, to shared memory, and their sums of each warp. In the rows of the last
// keys, to which only the last warp contributes, its keys are the first; the other warps write zeros behind them.
template <typename T>
__device__ __forceinline__ void write_last_probabilities(const FwdLastMemory& memory, const FwdLastScores& scores,
                                                         const float (&maximum)[2], float scale_log2) {
  const int warp = warp_of_group(), matrix = lane_index() / 8;
  float sum[2] = {0.0f, 0.0f};
#pragma unroll
  for (int tile = 0; tile < kLastKeyTiles; tile += 2) {
    uint32_t p[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float* pair = &scores[tile + i / 2][0][i % 2 * 2];
      const float low = fast_exp2(pair[0] * scale_log2 - maximum[0]);
      const float high = fast_exp2(pair[1] * scale_log2 - maximum[1]);
      sum[0] += low;
      sum[1] += high;
      p[i] = pack2<T>(low, high);
    }
    const int to_tile = tile + matrix / 2, place = to_tile < kLastKeyTiles - 1 ? warp : kWarpgroupWarps - 1 - warp;
    stmatrix_x4_trans(memory.probabilities.at(kLastQueries * to_tile + lane_index() % 8, 2 * place + matrix % 2), p);
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int step = 4; step < kWarpSize; step *= 2) sum[i] += shfl_xor(sum[i], step);
    if (lane_index() < 4) memory.sums[kLastQueries * warp + 2 * (lane_index() % 4) + i] = sum[i];
  }
  fence_async_proxy();
  barrier_sync(kAmongLast, kWarpgroupWarps * kWarpSize);
}

// out[8][64]^T: warp w has columns 16 w to 16 w + 15.
template <typename T, int kSteps>
__device__ __forceinline__ void multiply_last_values(float (&out)[1][4], SmemTile<64> values,
                                                     SmemTile<64> probabilities) {
  constexpr int kRow = SmemTile<64>::kRowBytes / 16;
  const uint64_t a = warpgroup_descriptor(values.address), b = warpgroup_descriptor(probabilities.address);
  warpgroup_fence();
#pragma unroll
  for (int step = 0; step < kSteps; ++step)
    warpgroup_atbt<T>(out, a + step * kTileRows * kRow, b + step / 4 * kLastQueries * kRow + step % 4 * 2, step > 0);
  warpgroup_commit();
  warpgroup_wait<0>(out);
}

// Stores out and lse of eight queries from `first` on, as far as there are.
template <typename T>
__device__ __forceinline__ void store_last_rows(const float (&out)[1][4], const float (&maximum)[2],
                                                const FwdLastMemory& memory, const ShortAttentionFwdParams& params,
                                                const FwdHeads& head, int first) {
  const int query = 2 * (lane_index() % 4), warp = warp_of_group();
  float inverse[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float total = memory.sums[query + i];
#pragma unroll
    for (int from = 1; from < kWarpgroupWarps; ++from) total += memory.sums[kLastQueries * from + query + i];
    inverse[i] = fast_reciprocal(total);
    if (warp == 0 && lane_index() < 4 && first + query + i < params.num_queries)
      params.lse[(int64_t(head.b) * params.heads + head.h) * params.num_queries + first + query + i] =
          (maximum[i] + fast_log2(total)) * kLn2;
  }
  stmatrix_x2_trans(memory.results.at(lane_index() % 8, 2 * warp + lane_index() / 8 % 2),
                    pack2<T>(out[0][0] * inverse[0], out[0][1] * inverse[1]),
                    pack2<T>(out[0][2] * inverse[0], out[0][3] * inverse[1]));
  barrier_sync(kAmongLast, kWarpgroupWarps * kWarpSize);
  const int row = 4 * warp + lane_index() / 8, chunk = lane_index() % 8;
  if (row >= kLastQueries || first + row >= params.num_queries) return;
  store_global_16(head_rows<T>(params.out, head.b, head.h) + (first + row) * params.out.token_stride + 8 * chunk,
                  load_smem_16(memory.results.at(row, chunk)));
}

// Computes the last queries of all heads, with one warpgroup.
template <typename Traits>
__device__ __forceinline__ void take_last_queries(const ShortAttentionFwdParams& params, const FwdPlaces& places) {
  using T = typename Traits::Element;
  constexpr int kFirst = kWgmmaTiles * kWarpgroupRows;
  const FwdLastMemory own = last_memory();
  const float scale_log2 = params.softmax_scale * kLog2E;
  const int count = count_heads(params);
  FwdHeads head = own_heads(params);
  // One loop over heads and eights: of two, the compiler would keep a head's descriptors in registers through the
  // inner.
#pragma unroll 1
  for (int n = 0, first = kFirst; n < count;) {
    const bool ends = first + kLastQueries >= params.num_queries;
    places.await(n, kKeysPart);
    places.await(n, kQueriesPart);
    FwdLastScores scores;
    multiply_last_queries<T>(scores, places.tile(n, kQueriesPart).below(first), places.tile(n, kKeysPart));
    if (ends) {
      places.give_back(n, kKeysPart);
      places.give_back(n, kQueriesPart);
    }
    mask_repeated_keys(scores, params.num_keys);
    float maximum[2], out[1][4];
    find_last_maxima(maximum, scores, own.maxima);
    for (float& value : maximum) value *= scale_log2;
    write_last_probabilities<T>(own, scores, maximum, scale_log2);
    places.await(n, kValuesPart);
    multiply_last_values<T, Traits::kSteps>(out, places.tile(n, kValuesPart), own.probabilities);
    if (ends) places.give_back(n, kValuesPart);
    store_last_rows<T>(out, maximum, own, params, head, first);
    first = ends ? kFirst : first + kLastQueries;
    if (ends) head.advance();
    n += ends;
  }
}

}  // namespace lgfast
