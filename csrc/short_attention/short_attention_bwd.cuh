// Gradients of short_attention in one kernel: from q, k, v, out, dout and lse to dq, dk, dv.
//
//   p = exp(softmax_scale * q k^T - lse)      dv = p^T dout      dp = dout v^T      delta = rowsum(dout * out)
//   ds = p * (dp - delta)                     dq = softmax_scale * ds k             dk = softmax_scale * ds^T q
//
// A block owns one (batch, head), so every sum ends on chip: no atomics, no workspace, and two runs agree bit for bit.
// Two passes, each with its operands in registers and no barrier inside: in the first a warp owns keys and walks the
// queries (dk, dv), in the second it owns queries and walks the keys (dq). Scores are computed in both: seven products
// in place of five, for which nothing crosses between warps. Resident: q, k, v and dout of the head lie in shared
// memory together. Streamed: they come in chunks; with one chunk of keys (few keys under many queries) dq is formed
// while the queries pass by, so each is read once. With fewer key groups than warps the warps share the queries out and
// add up their dk, dv in a fixed order at the end. Numerics: as forward; p and ds are rounded to T before their
// products. The optional bias sums are of the unrounded gradients. Follows FlashAttention-2 (arXiv 2307.08691) and, for
// the structure, apex's contrib fmha.
#pragma once

#include "short_attention/tiles.cuh"

namespace lgfast {

template <typename T, int kHeadDim>
struct ShortAttentionBwdTraits {
  using Element = T;
  using Tile = SmemTile<T, kHeadDim>;
  static constexpr int kD = kHeadDim;
  static constexpr int kWarps = kBwdWarps;
  static constexpr int kRows = kBwdRowsPerWarp;
  static constexpr int kKeys = bwd_keys_per_warp(kHeadDim);
  static constexpr int kRowTiles = kRows / kTileRows;
  static constexpr int kKeyTiles = kKeys / kTileRows;
  static constexpr int kMinBlocks = 2;
};

// What a block knows of its head: where things lie in shared memory.
template <typename Traits>
struct BwdBlock {
  typename Traits::Tile keys, values, queries, douts;
  float* lse_log2;  // [N rounded up], infinity beyond N: the probability there is zero
  float* delta;     // [N rounded up]
  float* scratch;   // dk or dv of the key groups that several warps share
  float* bias;      // [warps][3][D] column sums, or nullptr
  int b, h;
  int key_rows, query_rows;
  float scale_log2;
};

// dq of one warp's queries += its share from the keys now in shared memory.
template <typename Traits, int kTiles>
__device__ __forceinline__ void add_dq(float (&dq)[kTiles][Traits::kD / 8][4], const BwdBlock<Traits>& block, int row,
                                       const float* lse_log2, const float* delta, int keys_here) {
  using T = typename Traits::Element;
  constexpr int kD = Traits::kD;
  uint32_t q[kD / 16][kTiles][4], dout[kD / 16][kTiles][4];
  load_a(q, block.queries.below(row));
  load_a(dout, block.douts.below(row));
  float row_lse[kTiles][2], row_delta[kTiles][2];
#pragma unroll
  for (int i = 0; i < 2 * kTiles; ++i) {
    row_lse[i / 2][i % 2] = lse_log2[8 * i + lane_index() / 4];
    row_delta[i / 2][i % 2] = delta[8 * i + lane_index() / 4];
  }
#pragma unroll 1
  for (int key = 0; key < keys_here; key += kTileRows) {
    float p[kTiles][2][4] = {}, ds[kTiles][2][4] = {};
    uint32_t a[kTiles][4];
    multiply_abt(p, q, block.keys.below(key));
    multiply_abt(ds, dout, block.values.below(key));
#pragma unroll
    for (int r = 0; r < kTiles; ++r) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int j = i / 4, half = i / 2 % 2;
        const bool exists = key + 8 * j + 2 * (lane_index() % 4) + i % 2 < keys_here;
        const float probability = exists ? fast_exp2(p[r][j][i % 4] * block.scale_log2 - row_lse[r][half]) : 0.0f;
        ds[r][j][i % 4] = probability * (ds[r][j][i % 4] - row_delta[r][half]);
      }
      pack_a<T>(a[r], ds[r]);
    }
    multiply_ab(dq, a, block.keys.below(key));
  }
}

// dk and dv of one warp's keys += the share of query tiles part, part + parts, ... now in shared memory.
template <typename Traits>
__device__ __forceinline__ void add_dk_dv(float (&dk)[Traits::kKeyTiles][Traits::kD / 8][4],
                                          float (&dv)[Traits::kKeyTiles][Traits::kD / 8][4],
                                          const BwdBlock<Traits>& block, int key, const float* lse_log2,
                                          const float* delta, int queries_here, int part, int parts) {
  using T = typename Traits::Element;
  constexpr int kD = Traits::kD, kTiles = Traits::kKeyTiles;
  uint32_t k[kD / 16][kTiles][4], v[kD / 16][kTiles][4];
  load_a(k, block.keys.below(key));
  load_a(v, block.values.below(key));
#pragma unroll 1
  for (int row = part * kTileRows; row < queries_here; row += parts * kTileRows) {
    float p[kTiles][2][4] = {}, ds[kTiles][2][4] = {};  // [key][query]
    uint32_t a[kTiles][4];
    multiply_abt(p, k, block.queries.below(row));
    multiply_abt(ds, v, block.douts.below(row));
#pragma unroll
    for (int column = 0; column < 4; ++column) {
      const int j = column / 2, query = row + 8 * j + 2 * (lane_index() % 4) + column % 2;
      const float query_lse = lse_log2[query], query_delta = delta[query];
#pragma unroll
      for (int i = 0; i < 2 * kTiles; ++i) {
        float& probability = p[i / 2][j][2 * (i % 2) + column % 2];
        float& gradient = ds[i / 2][j][2 * (i % 2) + column % 2];
        probability = fast_exp2(probability * block.scale_log2 - query_lse);
        gradient = probability * (gradient - query_delta);
      }
    }
#pragma unroll
    for (int r = 0; r < kTiles; ++r) pack_a<T>(a[r], p[r]);
    multiply_ab(dv, a, block.douts.below(row));
#pragma unroll
    for (int r = 0; r < kTiles; ++r) pack_a<T>(a[r], ds[r]);
    multiply_ab(dk, a, block.queries.below(row));
  }
}

// Adds the column sums of rows below `limit` to bias[warp][which][D]; each warp has its own, so the order is fixed.
template <typename Traits>
__device__ __forceinline__ void add_bias(const BwdBlock<Traits>& block, int which,
                                         const float (&acc)[Traits::kD / 8][4], float factor, int first, int limit) {
  const int row = first + lane_index() / 4;
#pragma unroll
  for (int i = 0; i < Traits::kD / 4; ++i) {
    const int j = i / 2, column = i % 2;
    float sum = (row < limit ? acc[j][column] : 0.0f) + (row + 8 < limit ? acc[j][2 + column] : 0.0f);
#pragma unroll
    for (int mask = 4; mask < kWarpSize; mask *= 2) sum += shfl_xor(sum, mask);
    if (lane_index() < 4) {
      block.bias[(warp_index() * 3 + which) * Traits::kD + 8 * j + 2 * lane_index() + column] += sum * factor;
    }
  }
}

template <typename Traits, int kTiles>
__device__ __forceinline__ void store_gradient(const BwdBlock<Traits>& block, const HeadsOutput& view, int which,
                                               const float (&acc)[kTiles][Traits::kD / 8][4], float factor, int first,
                                               int limit) {
  using T = typename Traits::Element;
  T* head = head_rows<T>(view, block.b, block.h);
#pragma unroll
  for (int r = 0; r < kTiles; ++r) {
    const int row = first + r * kTileRows;
    store_rows<T, Traits::kD>(head, view.token_stride, acc[r], factor, factor, row, limit);
    if (block.bias != nullptr) add_bias<Traits>(block, which, acc[r], factor, row, limit);
  }
}

// Adds up what the warps of one key group hold, in the order of the warps; the result is with the group's first warp.
template <typename Traits>
__device__ __forceinline__ void reduce_over_parts(float (&dk)[Traits::kKeyTiles][Traits::kD / 8][4],
                                                  float (&dv)[Traits::kKeyTiles][Traits::kD / 8][4],
                                                  const BwdBlock<Traits>& block, int groups, int parts) {
  constexpr int kValues = Traits::kKeyTiles * Traits::kD / 2;  // a lane's share of dk, and of dv
  float* sums[2] = {&dk[0][0][0], &dv[0][0][0]};
#pragma unroll
  for (int which = 0; which < 2; ++which) {
    for (int part = 1; part < parts; ++part) {
      sync_threads();  // the part before has been added
      float* mine = block.scratch + (warp_index() % groups) * kValues * kWarpSize + lane_index();
      if (warp_index() / groups == part) {
#pragma unroll
        for (int i = 0; i < kValues; ++i) mine[i * kWarpSize] = sums[which][i];
      }
      sync_threads();
      if (warp_index() / groups == 0) {
#pragma unroll
        for (int i = 0; i < kValues; ++i) sums[which][i] += mine[i * kWarpSize];
      }
    }
  }
}

// Starts copying a chunk of keys.
template <typename Traits>
__device__ __forceinline__ void load_keys(const BwdBlock<Traits>& block, const ShortAttentionBwdParams& params,
                                          int first) {
  using T = typename Traits::Element;
  load_rows_async(block.keys, head_rows<T>(params.k, block.b, block.h), params.k.token_stride, first, block.key_rows,
                  params.num_keys, thread_index(), block_size());
  load_rows_async(block.values, head_rows<T>(params.v, block.b, block.h), params.v.token_stride, first, block.key_rows,
                  params.num_keys, thread_index(), block_size());
}

template <typename Traits>
__device__ __forceinline__ void load_queries(const BwdBlock<Traits>& block, const ShortAttentionBwdParams& params,
                                             int first) {
  using T = typename Traits::Element;
  load_rows_async(block.queries, head_rows<T>(params.q, block.b, block.h), params.q.token_stride, first,
                  block.query_rows, params.num_queries, thread_index(), block_size());
  load_rows_async(block.douts, head_rows<T>(params.dout, block.b, block.h), params.dout.token_stride, first,
                  block.query_rows, params.num_queries, thread_index(), block_size());
}

// lse and delta of a chunk of queries; four lanes share a row.
template <typename Traits>
__device__ __forceinline__ void compute_delta(const BwdBlock<Traits>& block, const ShortAttentionBwdParams& params,
                                              int first) {
  using T = typename Traits::Element;
  const T* out = head_rows<T>(params.out, block.b, block.h);
  const T* dout = head_rows<T>(params.dout, block.b, block.h);
  const float* lse = params.lse + (int64_t(block.b) * params.heads + block.h) * params.num_queries;
  for (int warp_row = 8 * warp_index(); warp_row < block.query_rows; warp_row += 8 * num_warps()) {
    const int row = first + warp_row + lane_index() / 4;
    const bool valid = row < params.num_queries;
    float sum = 0.0f;
    for (int chunk = lane_index() % 4; valid && chunk < Traits::kD / 8; chunk += 4) {
      const Vector16 a = *reinterpret_cast<const Vector16*>(out + row * params.out.token_stride + 8 * chunk);
      const Vector16 b = *reinterpret_cast<const Vector16*>(dout + row * params.dout.token_stride + 8 * chunk);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        sum += unpack_low<T>(a.words[i]) * unpack_low<T>(b.words[i]);
        sum += unpack_high<T>(a.words[i]) * unpack_high<T>(b.words[i]);
      }
    }
    sum += shfl_xor(sum, 1);
    sum += shfl_xor(sum, 2);
    if (lane_index() % 4 == 0) {
      block.delta[row] = sum;
      block.lse_log2[row] = valid ? lse[row] * kLog2E : -negative_infinity();
    }
  }
}

__device__ __forceinline__ void wait_for_copies() {
  cp_async_commit();
  cp_async_wait<0>();
  sync_threads();
}

// dq of the chunk of queries in shared memory, all keys being there: the warps take turns at groups of kTiles x 16
// rows.
template <typename Traits, int kTiles>
__device__ __forceinline__ void write_dq_of_chunk(const BwdBlock<Traits>& block, const ShortAttentionBwdParams& params,
                                                  int first_query) {
  const int queries_here = smaller(params.num_queries - first_query, block.query_rows);
#pragma unroll 1
  for (int row = warp_index() * kTiles * kTileRows; row < queries_here; row += num_warps() * kTiles * kTileRows) {
    float dq[kTiles][Traits::kD / 8][4] = {};
    const int query = first_query + row;
    add_dq<Traits>(dq, block, row, block.lse_log2 + query, block.delta + query, params.num_keys);
    store_gradient<Traits>(block, params.dq, 0, dq, params.softmax_scale, query, params.num_queries);
  }
}

// First pass, and dq with it where all keys are in shared memory and the queries pass by.
template <typename Traits>
__device__ __forceinline__ void write_dk_dv(const BwdBlock<Traits>& block, const ShortAttentionBwdParams& params) {
  const bool has_all_keys = params.num_keys <= block.key_rows;
  const bool has_all_queries = params.num_queries <= block.query_rows;
#pragma unroll 1
  for (int first_key = 0; first_key < params.num_keys; first_key += block.key_rows) {
    if (first_key > 0) sync_threads();  // everyone is done with the keys before
    load_keys(block, params, first_key);
    const int keys_here = smaller(params.num_keys - first_key, block.key_rows);
    const int groups = ceil_div(keys_here, Traits::kKeys);
    const int parts = groups < num_warps() ? num_warps() / groups : 1;
    const int part = parts > 1 ? warp_index() / groups : 0;
#pragma unroll 1
    for (int base = 0; base < groups; base += num_warps()) {  // more than one round only with all queries there
      const int group = parts > 1 ? warp_index() % groups : base + warp_index();
      const bool has_keys = group < groups && part < parts;
      float dk[Traits::kKeyTiles][Traits::kD / 8][4] = {}, dv[Traits::kKeyTiles][Traits::kD / 8][4] = {};
#pragma unroll 1
      for (int first_query = 0; first_query < params.num_queries; first_query += block.query_rows) {
        if (!has_all_queries || (first_key == 0 && base == 0)) {
          if (first_query > 0 || first_key > 0) sync_threads();
          load_queries(block, params, first_query);
          if (first_key == 0) compute_delta(block, params, first_query);
        }
        if (!has_all_queries || base == 0) wait_for_copies();
        const int queries_here = smaller(params.num_queries - first_query, block.query_rows);
        if (has_keys) {
          add_dk_dv<Traits>(dk, dv, block, group * Traits::kKeys, block.lse_log2 + first_query,
                            block.delta + first_query, queries_here, part, parts);
        }
        if (has_all_keys && !has_all_queries) write_dq_of_chunk<Traits, 1>(block, params, first_query);
      }
      if (parts > 1) reduce_over_parts<Traits>(dk, dv, block, groups, parts);
      if (has_keys && part == 0) {
        const int key = first_key + group * Traits::kKeys;
        store_gradient<Traits>(block, params.dk, 1, dk, params.softmax_scale, key, params.num_keys);
        store_gradient<Traits>(block, params.dv, 2, dv, 1.0f, key, params.num_keys);
      }
    }
  }
}

// Second pass with the keys in chunks: a warp holds one group of queries while the keys pass by.
template <typename Traits>
__device__ __forceinline__ void write_dq_streamed(const BwdBlock<Traits>& block,
                                                  const ShortAttentionBwdParams& params) {
#pragma unroll 1
  for (int first_query = 0; first_query < params.num_queries; first_query += block.query_rows) {
    const int row = warp_index() * Traits::kRows, query = first_query + row;
    float dq[Traits::kRowTiles][Traits::kD / 8][4] = {};
    sync_threads();
    load_queries(block, params, first_query);
#pragma unroll 1
    for (int first_key = 0; first_key < params.num_keys; first_key += block.key_rows) {
      if (first_key > 0) sync_threads();
      load_keys(block, params, first_key);
      wait_for_copies();
      const int keys_here = smaller(params.num_keys - first_key, block.key_rows);
      add_dq<Traits>(dq, block, row, block.lse_log2 + query, block.delta + query, keys_here);
    }
    store_gradient<Traits>(block, params.dq, 0, dq, params.softmax_scale, query, params.num_queries);
  }
}

template <typename Traits>
__global__ void __launch_bounds__(Traits::kWarps* kWarpSize, Traits::kMinBlocks)
    short_attention_bwd_kernel(const ShortAttentionBwdParams params, const int key_rows, const int query_rows) {
  using T = typename Traits::Element;
  using Tile = typename Traits::Tile;
  T* smem = reinterpret_cast<T*>(dynamic_smem());
  const int stats = round_up(params.num_queries, query_rows);
  BwdBlock<Traits> block;
  block.keys = Tile{smem};
  block.values = block.keys.below(key_rows);
  block.queries = block.values.below(key_rows);
  block.douts = block.queries.below(query_rows);
  block.lse_log2 = reinterpret_cast<float*>(block.douts.below(query_rows).at(0, 0));
  block.delta = block.lse_log2 + stats;
  block.bias = params.dbias != nullptr ? block.delta + stats : nullptr;
  block.scratch = block.delta + stats + (params.dbias != nullptr ? Traits::kWarps * 3 * Traits::kD : 0);
  block.b = block_index();
  block.h = block_index_y();
  block.key_rows = key_rows;
  block.query_rows = query_rows;
  block.scale_log2 = params.softmax_scale * kLog2E;

  constexpr int kBiasValues = 3 * Traits::kD;
  if (block.bias != nullptr) {
    for (int i = thread_index(); i < Traits::kWarps * kBiasValues; i += block_size()) block.bias[i] = 0.0f;
  }
  write_dk_dv(block, params);
  if (params.num_keys > key_rows) {
    write_dq_streamed(block, params);
  } else if (params.num_queries <= query_rows) {
    write_dq_of_chunk<Traits, Traits::kRowTiles>(block, params, 0);
  }
  if (block.bias != nullptr) {
    sync_threads();
    for (int i = thread_index(); i < kBiasValues; i += block_size()) {
      float sum = 0.0f;
      for (int warp = 0; warp < Traits::kWarps; ++warp) sum += block.bias[warp * kBiasValues + i];
      const int64_t row = (int64_t(block.b) * 3 + i / Traits::kD) * params.heads + block.h;
      params.dbias[row * Traits::kD + i % Traits::kD] = sum;
    }
  }
}

template <typename T, int kHeadDim>
const char* launch_short_attention_bwd(const ShortAttentionBwdParams& params, void* stream) {
  using Traits = ShortAttentionBwdTraits<T, kHeadDim>;
  const auto plan = plan_short_attention_bwd(params.num_queries, params.num_keys, kHeadDim, params.dbias != nullptr);
  return launch(short_attention_bwd_kernel<Traits>, Grid{params.batch, params.heads}, plan.warps * kWarpSize,
                plan.smem_bytes, stream, params, plan.key_rows, plan.query_rows);
}

}  // namespace lgfast
