// Gradients of short_attention for more keys than a block holds on chip, and for few keys and queries, which leave most
// warps of the resident kernel idle (short_attention_bwd_resident.cuh).
//
// A block walks over a head twice, chunk by chunk, with operands in registers and no barrier inside a chunk. In the
// first walk a warp owns keys and goes through the queries (dk, dv); in the second it owns queries and goes through the
// keys (dq). Both walks compute the scores: seven products in place of five, in return for which nothing crosses
// between warps. Where there are fewer key groups than warps, the warps also share out the queries, and add up their dk
// and dv in a fixed order at the end. Follows FlashAttention-2 (arXiv 2307.08691).
#pragma once

#include "short_attention/gradients.cuh"

namespace lgfast {

template <typename T, int kHeadDim>
struct ShortAttentionBwdStreamedTraits {
  using Element = T;
  using Tile = SmemTile<kHeadDim>;
  static constexpr int kD = kHeadDim;
  static constexpr int kWarps = kBwdWarps, kThreads = kWarps * kWarpSize;
  static constexpr int kRows = kBwdRowsPerWarp;
  static constexpr int kKeys = bwd_keys_per_warp(kHeadDim);
  static constexpr int kRowTiles = kRows / kTileRows;
  static constexpr int kKeyTiles = kKeys / kTileRows;
  static constexpr int kMinBlocks = 2;
};

// A block's head, and where its data lies in shared memory.
template <typename Traits>
struct BwdBlock {
  typename Traits::Tile keys, values, queries, douts;
  QueryStats* stats;  // [N rounded up]
  float* scratch;     // dk or dv of the key groups that several warps share
  float* bias;        // [warps][3][D] column sums, or nullptr
  int b, h;
  int key_rows, query_rows;
  float scale_log2;
};

// Adds the share of the keys now in shared memory to dq of one warp's queries.
template <typename Traits>
__device__ __forceinline__ void add_dq(float (&dq)[Traits::kRowTiles][Traits::kD / 8][4], const BwdBlock<Traits>& block,
                                       int row, int query, int keys_here) {
  using T = typename Traits::Element;
  constexpr int kD = Traits::kD, kTiles = Traits::kRowTiles;
  uint32_t q[kD / 16][kTiles][4], dout[kD / 16][kTiles][4];
  load_a(q, block.queries.below(row));
  load_a(dout, block.douts.below(row));
  QueryStats own[kTiles][2];
#pragma unroll
  for (int i = 0; i < 2 * kTiles; ++i) own[i / 2][i % 2] = block.stats[query + 8 * i + lane_index() / 4];
#pragma unroll 1
  for (int key = 0; key < keys_here; key += kTileRows) {
    float p[kTiles][2][4], ds[kTiles][2][4] = {};
    uint32_t a[kTiles][4];
#pragma unroll
    for (int i = 0; i < kTiles * 8; ++i) {  // the sums of keys that do not exist start, and stay, at minus infinity
      const int column = 8 * (i / 4 % 2) + 2 * (lane_index() % 4) + i % 2;
      p[i / 8][i / 4 % 2][i % 4] = key + column < keys_here ? 0.0f : negative_infinity();
    }
    multiply_abt<T>(p, q, block.keys.below(key));
    multiply_abt<T>(ds, dout, block.values.below(key));
#pragma unroll
    for (int r = 0; r < kTiles; ++r) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const QueryStats& query = own[r][i / 2 % 2];
        const float probability = fast_exp2(p[r][i / 4][i % 4] * block.scale_log2 - query.lse_log2);
        ds[r][i / 4][i % 4] = probability * (ds[r][i / 4][i % 4] - query.delta);
      }
      pack_a<T>(a[r], ds[r]);
    }
    multiply_ab<T>(dq, a, block.keys.below(key));
  }
}

// Adds the share of query tiles part, part + parts, ... now in shared memory to dk and dv of one warp's keys.
template <typename Traits>
__device__ __forceinline__ void add_dk_dv(float (&dk)[Traits::kKeyTiles][Traits::kD / 8][4],
                                          float (&dv)[Traits::kKeyTiles][Traits::kD / 8][4],
                                          const BwdBlock<Traits>& block, int key, int first_query, int queries_here,
                                          int part, int parts) {
  using T = typename Traits::Element;
  constexpr int kD = Traits::kD, kTiles = Traits::kKeyTiles;
  uint32_t k[kD / 16][kTiles][4], v[kD / 16][kTiles][4];
  load_a(k, block.keys.below(key));
  load_a(v, block.values.below(key));
#pragma unroll 1
  for (int row = part * kTileRows; row < queries_here; row += parts * kTileRows) {
    float p[kTiles][2][4] = {}, ds[kTiles][2][4] = {};  // [key][query]
    uint32_t a[kTiles][4];
    multiply_abt<T>(p, k, block.queries.below(row));
    multiply_abt<T>(ds, v, block.douts.below(row));
    score_gradients(p, ds, block.stats + first_query + row, block.scale_log2);
#pragma unroll
    for (int r = 0; r < kTiles; ++r) pack_a<T>(a[r], p[r]);
    multiply_ab<T>(dv, a, block.douts.below(row));
#pragma unroll
    for (int r = 0; r < kTiles; ++r) pack_a<T>(a[r], ds[r]);
    multiply_ab<T>(dk, a, block.queries.below(row));
  }
}

// Writes one of dq, dk, dv (`which` 0, 1, 2) of a warp's rows, and adds its column sums to the warp's.
template <typename Traits, int kTiles>
__device__ __forceinline__ void write_gradient(const BwdBlock<Traits>& block, const HeadsOutput& view, int which,
                                               float (&acc)[kTiles][Traits::kD / 8][4], float factor, int first,
                                               int limit) {
  using T = typename Traits::Element;
  store_gradient(head_rows<T>(view, block.b, block.h), view.token_stride, acc, factor, first, limit);
  if (block.bias == nullptr) return;
  clear_rows(acc, limit - first);
  LaneColumnSums<Traits::kD> sums;
  sums.add(acc);
  float* bias = block.bias + (warp_index() * 3 + which) * Traits::kD;  // a warp has its own, so the order is fixed
  sums.reduce([&](int column, float sum) { bias[column] += sum * factor; });
}

// Adds up dk and dv of the warps that share a key group, in the order of the warps. The group's first warp ends with
// the result.
template <typename Traits>
__device__ __forceinline__ void reduce_over_parts(float (&dk)[Traits::kKeyTiles][Traits::kD / 8][4],
                                                  float (&dv)[Traits::kKeyTiles][Traits::kD / 8][4],
                                                  const BwdBlock<Traits>& block, int group, int part, int parts) {
  constexpr int kValues = Traits::kKeyTiles * Traits::kD / 2;  // a lane's share of dk, and of dv
  float* sums[2] = {&dk[0][0][0], &dv[0][0][0]};
#pragma unroll
  for (int which = 0; which < 2; ++which) {
    for (int added = 1; added < parts; ++added) {
      sync_threads();  // the part before has been added
      float* mine = block.scratch + group * kValues * kWarpSize + lane_index();
      if (part == added) {
#pragma unroll
        for (int i = 0; i < kValues; ++i) mine[i * kWarpSize] = sums[which][i];
      }
      sync_threads();
      if (part == 0) {
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
                  params.num_keys, thread_index(), Traits::kThreads);
  load_rows_async(block.values, head_rows<T>(params.v, block.b, block.h), params.v.token_stride, first, block.key_rows,
                  params.num_keys, thread_index(), Traits::kThreads);
}

template <typename Traits>
__device__ __forceinline__ void load_queries(const BwdBlock<Traits>& block, const ShortAttentionBwdParams& params,
                                             int first) {
  using T = typename Traits::Element;
  load_rows_async(block.queries, head_rows<T>(params.q, block.b, block.h), params.q.token_stride, first,
                  block.query_rows, params.num_queries, thread_index(), Traits::kThreads);
  load_rows_async(block.douts, head_rows<T>(params.dout, block.b, block.h), params.dout.token_stride, first,
                  block.query_rows, params.num_queries, thread_index(), Traits::kThreads);
}

// Computes lse and delta of a chunk of queries; four lanes share a row. The loads of kRowsAtOnce rows are in flight
// together.
template <typename Traits, int kRowsAtOnce>
__device__ __forceinline__ void compute_stats(const BwdBlock<Traits>& block, const ShortAttentionBwdParams& params,
                                              int first) {
  using T = typename Traits::Element;
  constexpr int kRowStep = 8 * Traits::kWarps;
  constexpr int kChunks = Traits::kD / 8, kLaneChunks = (kChunks + 3) / 4;
  const T* out = head_rows<T>(params.out, block.b, block.h);
  const T* dout = head_rows<T>(params.dout, block.b, block.h);
  const float* lse = params.lse + (int64_t(block.b) * params.heads + block.h) * params.num_queries;
#pragma unroll 1
  for (int group = thread_index() / 4; group < block.query_rows; group += kRowsAtOnce * kRowStep) {
    Vector16 a[kRowsAtOnce][kLaneChunks] = {}, b[kRowsAtOnce][kLaneChunks] = {};
    float row_lse[kRowsAtOnce];
#pragma unroll
    for (int i = 0; i < kRowsAtOnce; ++i) {
      const int row = first + group + i * kRowStep;
      const bool valid = row < params.num_queries;
      row_lse[i] = valid ? lse[row] : -negative_infinity();
#pragma unroll
      for (int j = 0; j < kLaneChunks; ++j) {
        const int chunk = lane_index() % 4 + 4 * j;
        if (!valid || chunk >= kChunks) continue;
        a[i][j] = *reinterpret_cast<const Vector16*>(out + row * params.out.token_stride + 8 * chunk);
        b[i][j] = *reinterpret_cast<const Vector16*>(dout + row * params.dout.token_stride + 8 * chunk);
      }
    }
#pragma unroll
    for (int i = 0; i < kRowsAtOnce; ++i) {
      float sum = 0.0f;
#pragma unroll
      for (int word = 0; word < 4 * kLaneChunks; ++word) {
        const uint32_t o = a[i][word / 4].words[word % 4], d = b[i][word / 4].words[word % 4];
        sum += unpack_low<T>(o) * unpack_low<T>(d);
        sum += unpack_high<T>(o) * unpack_high<T>(d);
      }
      sum += shfl_xor(sum, 1);
      sum += shfl_xor(sum, 2);
      const int row = group + i * kRowStep;
      if (lane_index() % 4 == 0 && row < block.query_rows) block.stats[first + row] = {row_lse[i] * kLog2E, sum};
    }
  }
}

__device__ __forceinline__ void wait_for_copies() {
  cp_async_commit();
  cp_async_wait<0>();
  sync_threads();
}

// The first walk. A round of the loop over keys takes one group of keys for each warp. In a round with fewer groups
// than warps, the warps share out the queries too.
template <typename Traits>
__device__ __forceinline__ void write_dk_dv(const BwdBlock<Traits>& block, const ShortAttentionBwdParams& params) {
  constexpr int kRoundKeys = Traits::kWarps * Traits::kKeys, kLog2Warps = 2;
  static_assert(Traits::kWarps == 1 << kLog2Warps);
  const bool has_all_queries = params.num_queries <= block.query_rows;
#pragma unroll 1
  for (int first_key = 0; first_key < params.num_keys; first_key += kRoundKeys) {
    if (first_key > 0) sync_threads();  // everyone is done with the keys before
    load_keys(block, params, first_key);
    // The lower bits of a warp's index are its group of keys, the other bits its part of the queries.
    const int groups = ceil_div(params.num_keys - first_key, Traits::kKeys);
    const int group_bits = groups <= Traits::kWarps / 2 ? groups - 1 : kLog2Warps;
    const int parts = Traits::kWarps >> group_bits;
    const int part = warp_index() >> group_bits, group = warp_index() & ((1 << group_bits) - 1);
    float dk[Traits::kKeyTiles][Traits::kD / 8][4] = {}, dv[Traits::kKeyTiles][Traits::kD / 8][4] = {};
#pragma unroll 1
    for (int first_query = 0; first_query < params.num_queries; first_query += block.query_rows) {
      if (first_key == 0 || !has_all_queries) {
        if (first_query > 0) sync_threads();
        load_queries(block, params, first_query);
        if (first_key == 0) compute_stats<Traits, 2>(block, params, first_query);
      }
      if (first_query == 0 || !has_all_queries) wait_for_copies();
      if (group < groups) {
        const int queries_here = smaller(params.num_queries - first_query, block.query_rows);
        add_dk_dv<Traits>(dk, dv, block, group * Traits::kKeys, first_query, queries_here, part, parts);
      }
    }
    if (parts > 1) reduce_over_parts<Traits>(dk, dv, block, group, part, parts);
    if (group < groups && part == 0) {
      const int key = first_key + group * Traits::kKeys;
      write_gradient(block, params.dk, 1, dk, params.softmax_scale, key, params.num_keys);
      write_gradient(block, params.dv, 2, dv, 1.0f, key, params.num_keys);
    }
  }
}

// The second walk: a warp holds one group of queries and goes through the keys.
template <typename Traits>
__device__ __forceinline__ void write_dq(const BwdBlock<Traits>& block, const ShortAttentionBwdParams& params) {
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
      add_dq<Traits>(dq, block, row, query, keys_here);
    }
    write_gradient(block, params.dq, 0, dq, params.softmax_scale, query, params.num_queries);
  }
}

template <typename Traits>
__global__ void __launch_bounds__(Traits::kThreads, Traits::kMinBlocks)
    short_attention_bwd_streamed_kernel(const ShortAttentionBwdParams params, const int key_rows,
                                        const int query_rows) {
  using Tile = typename Traits::Tile;
  BwdBlock<Traits> block;
  block.keys = Tile{smem_address(dynamic_smem())};
  block.values = block.keys.below(key_rows);
  block.queries = block.values.below(key_rows);
  block.douts = block.queries.below(query_rows);
  unsigned char* rest = dynamic_smem() + 2 * (key_rows + query_rows) * Tile::kRowBytes;
  block.stats = reinterpret_cast<QueryStats*>(rest);
  float* sums = reinterpret_cast<float*>(block.stats + round_up(params.num_queries, query_rows));
  block.bias = params.dbias != nullptr ? sums : nullptr;
  block.scratch = sums + (params.dbias != nullptr ? Traits::kWarps * 3 * Traits::kD : 0);
  block.b = block_index();
  block.h = block_index_y();
  block.key_rows = key_rows;
  block.query_rows = query_rows;
  block.scale_log2 = params.softmax_scale * kLog2E;

  constexpr int kBiasValues = 3 * Traits::kD;
  if (block.bias != nullptr) {
    for (int i = thread_index(); i < Traits::kWarps * kBiasValues; i += Traits::kThreads) block.bias[i] = 0.0f;
  }
  write_dk_dv(block, params);
  write_dq(block, params);
  if (block.bias != nullptr) {
    sync_threads();
    for (int i = thread_index(); i < kBiasValues; i += Traits::kThreads) {
      float sum = 0.0f;
      for (int warp = 0; warp < Traits::kWarps; ++warp) sum += block.bias[warp * kBiasValues + i];
      const int64_t row = (int64_t(block.b) * 3 + i / Traits::kD) * params.heads + block.h;
      params.dbias[row * Traits::kD + i % Traits::kD] = sum;
    }
  }
}

}  // namespace lgfast
