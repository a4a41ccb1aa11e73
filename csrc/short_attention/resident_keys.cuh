// What the key warps of the resident backward kernel form: dk and dv.
#pragma once

#include "short_attention/resident_block.cuh"

namespace lgfast {

// The sums of a key warp.
template <int kD, int kTiles>
struct KeySums {
  static constexpr int kValues = kTiles * kD;  // of a lane
  float dk[kTiles][kD / 8][4], dv[kTiles][kD / 8][4];
};

// Adds the share of 16 queries to dk and dv of one warp's keys. Writes their ds^T to `scores`, from chunk `chunk` on.
template <typename T, int kD, int kTiles>
__device__ __forceinline__ void add_dk_dv(KeySums<kD, kTiles>& sums, const uint32_t (&k)[kD / 16][kTiles][4],
                                          const uint32_t (&v)[kD / 16][kTiles][4], SmemTile<kD> queries,
                                          SmemTile<kD> douts, const QueryStats* stats, ScoreTile scores, int chunk,
                                          float scale_log2) {
  float p[kTiles][2][4] = {}, ds[kTiles][2][4] = {};  // [key][query]
  uint32_t a[kTiles][4];
  multiply_abt<T>(p, k, queries);
  multiply_abt<T>(ds, v, douts);
  score_gradients(p, ds, stats, scale_log2);
#pragma unroll
  for (int r = 0; r < kTiles; ++r) pack_a<T>(a[r], p[r]);
  multiply_ab<T>(sums.dv, a, douts);
  const uint32_t to = scores.at(lane_index() / 4, chunk) + 4 * (lane_index() % 4);
#pragma unroll
  for (int r = 0; r < kTiles; ++r) {
    pack_a<T>(a[r], ds[r]);
#pragma unroll
    for (int i = 0; i < 4; ++i) {  // rows g and g + 8 of this chunk, then of the next
      store_smem_4((i < 2 ? to : to ^ 16) + (r * kTileRows + 8 * (i % 2)) * scores.kRowBytes, a[r][i]);
    }
  }
  multiply_ab<T>(sums.dk, a, queries);
}

// Stores a warp's rows of dk or dv, and their column sums in bias[D], unless that is nullptr.
template <typename T, int kTiles, int kColumnTiles>
__device__ __forceinline__ void write_key_gradient(const HeadsOutput& view, Head head,
                                                   float (&acc)[kTiles][kColumnTiles][4], float factor, int first,
                                                   int limit, float* bias) {
  store_gradient(head_rows<T>(view, head.b, head.h), view.token_stride, acc, factor, first, limit);
  if (bias == nullptr) return;
  clear_rows(acc, limit - first);
  LaneColumnSums<8 * kColumnTiles> sums;
  sums.add(acc);
  sums.reduce([&](int column, float sum) { bias[column] = sum * factor; });
}

// Writes dk and dv of a head: the first part's warp adds the other parts' sums to its own and stores the result.
template <typename Traits, int kTiles>
__device__ __forceinline__ void write_dk_dv(const ResidentBlock<Traits>& block, const ShortAttentionBwdParams& params,
                                            KeySums<Traits::kD, kTiles>& sums, int count, Head head, int group) {
  using T = typename Traits::Element;
  float* values = &sums.dk[0][0][0];
#pragma unroll 1
  for (int part = 1; part < block.plan.parts; ++part) {
    const float* theirs = block.scratch_of(part, group);
#pragma unroll
    for (int i = 0; i < sums.kValues; ++i) values[i] += theirs[i * kWarpSize];
  }
  const int key = group * kResidentGroup;
  write_key_gradient<T>(params.dk, head, sums.dk, params.softmax_scale, key, params.num_keys,
                        block.bias(count, block.role, 0));
  write_key_gradient<T>(params.dv, head, sums.dv, 1.0f, key, params.num_keys, block.bias(count, block.role, 1));
}

}  // namespace lgfast
