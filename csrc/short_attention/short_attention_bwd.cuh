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

template <typename T, int kHeadDim, bool kResident>
struct ShortAttentionBwdTraits {
  using Element = T;
  using Tile = SmemTile<kHeadDim>;
  static constexpr int kD = kHeadDim;
  static constexpr bool kIsResident = kResident;  // q, k, v and dout are all in shared memory from the start
  static constexpr int kWarps = kBwdWarps, kThreads = kWarps * kWarpSize;
  static constexpr int kRows = kBwdRowsPerWarp;
  static constexpr int kKeys = bwd_keys_per_warp(kHeadDim, kResident);
  static constexpr int kRowTiles = kRows / kTileRows;
  static constexpr int kPassingTiles = kHeadDim == 32 ? 2 : 1;  // of queries that pass by while dk and dv are held
  static constexpr int kKeyTiles = kKeys / kTileRows;
  static constexpr bool kHoldsValues = kKeyTiles == 1 || kHeadDim == 32;  // in registers, as keys are
  static constexpr int kMinBlocks = 2;
};

// What backward knows of a query.
struct alignas(8) QueryStats {
  float lse_log2;  // infinity beyond N: the probability there is zero
  float delta;
};
struct alignas(16) QueryStatsPair {
  QueryStats stats[2];
};

// What a block knows of its head: where things lie in shared memory.
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

// dq of one warp's queries += its share from the keys now in shared memory.
template <typename Traits, int kTiles>
__device__ __forceinline__ void add_dq(float (&dq)[kTiles][Traits::kD / 8][4], const BwdBlock<Traits>& block, int row,
                                       int query, int keys_here) {
  using T = typename Traits::Element;
  constexpr int kD = Traits::kD;
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

// dk and dv of one warp's keys += the share of query tiles part, part + parts, ... now in shared memory.
template <typename Traits>
__device__ __forceinline__ void add_dk_dv(float (&dk)[Traits::kKeyTiles][Traits::kD / 8][4],
                                          float (&dv)[Traits::kKeyTiles][Traits::kD / 8][4],
                                          const BwdBlock<Traits>& block, int key, int first_query, int queries_here,
                                          int part, int parts) {
  using T = typename Traits::Element;
  constexpr int kD = Traits::kD, kTiles = Traits::kKeyTiles;
  uint32_t k[kD / 16][kTiles][4], v[kD / 16][kTiles][4];
  load_a(k, block.keys.below(key));
  if constexpr (Traits::kHoldsValues) load_a(v, block.values.below(key));
#pragma unroll 1
  for (int row = part * kTileRows; row < queries_here; row += parts * kTileRows) {
    float p[kTiles][2][4] = {}, ds[kTiles][2][4] = {};  // [key][query]
    uint32_t a[kTiles][4];
    multiply_abt<T>(p, k, block.queries.below(row));
#pragma unroll
    for (int step = 0; step < kD / 16; ++step) {
      if constexpr (!Traits::kHoldsValues) load_a_step(v[step], block.values.below(key), step);
      multiply_abt_step<T>(ds, v[step], block.douts.below(row), step);
    }
    QueryStatsPair two[2];  // this lane's columns
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const QueryStats* stats = block.stats + first_query + row + 8 * j + 2 * (lane_index() % 4);
      two[j] = *reinterpret_cast<const QueryStatsPair*>(stats);
    }
#pragma unroll
    for (int i = 0; i < kTiles * 8; ++i) {
      const QueryStats& query = two[i / 4 % 2].stats[i % 2];
      float& probability = p[i / 8][i / 4 % 2][i % 4];
      float& gradient = ds[i / 8][i / 4 % 2][i % 4];
      probability = fast_exp2(probability * block.scale_log2 - query.lse_log2);
      gradient = probability * (gradient - query.delta);
    }
#pragma unroll
    for (int r = 0; r < kTiles; ++r) pack_a<T>(a[r], p[r]);
    multiply_ab<T>(dv, a, block.douts.below(row));
#pragma unroll
    for (int r = 0; r < kTiles; ++r) pack_a<T>(a[r], ds[r]);
    multiply_ab<T>(dk, a, block.queries.below(row));
  }
}

// Sums over the lanes that differ in bits 4 .. kMask of their index. While kCount is even, pairs of lanes exchange
// halves and each goes on with one; returns the first of the values this lane ends with.
template <int kMask, int kCount>
__device__ __forceinline__ int reduce_scatter(float* values) {
  const bool upper = lane_index() & kMask;
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

// Adds the column sums of rows below `limit` to bias[warp][which][D]; each warp has its own, so the order is fixed.
template <typename Traits>
__device__ __forceinline__ void add_bias(const BwdBlock<Traits>& block, int which,
                                         const float (&acc)[Traits::kD / 8][4], float factor, int first, int limit) {
  constexpr int kColumns = Traits::kD / 4;  // of a lane, and of the seven with its index mod 4
  constexpr int kSums = kColumns % 8 == 0 ? kColumns / 8 : kColumns / 4;  // of each in the end; D = 48: of each two
  const int row = first + lane_index() / 4;
  float sums[kColumns];
#pragma unroll
  for (int i = 0; i < kColumns; ++i) {
    const int j = i / 2, column = i % 2;
    sums[i] = (row < limit ? acc[j][column] : 0.0f) + (row + 8 < limit ? acc[j][2 + column] : 0.0f);
  }
  const int own = reduce_scatter<kWarpSize / 2, kColumns>(sums);
  if (kSums * 8 > kColumns && lane_index() / 4 % 2 == 1) return;
#pragma unroll
  for (int i = 0; i < kSums; ++i) {
    const int column = (own + i) / 2 * 8 + 2 * (lane_index() % 4) + (own + i) % 2;
    block.bias[(warp_index() * 3 + which) * Traits::kD + column] += sums[i] * factor;
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

// lse and delta of a chunk of queries; four lanes share a row. The loads of kRowsAtOnce rows are in flight together.
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

// dq of the chunk of queries in shared memory, all keys being there: the warps take turns at groups of kTiles x 16
// rows, from the last warp on, because the first ones may have had a group of keys more.
template <typename Traits, int kTiles>
__device__ __forceinline__ void write_dq_of_chunk(const BwdBlock<Traits>& block, const ShortAttentionBwdParams& params,
                                                  int first_query) {
  const int queries_here = smaller(params.num_queries - first_query, block.query_rows);
  constexpr int kRows = kTiles * kTileRows;
#pragma unroll 1
  for (int row = (Traits::kWarps - 1 - warp_index()) * kRows; row < queries_here; row += Traits::kWarps * kRows) {
    float dq[kTiles][Traits::kD / 8][4] = {};
    const int query = first_query + row;
    add_dq<Traits>(dq, block, row, query, params.num_keys);
    store_gradient<Traits>(block, params.dq, 0, dq, params.softmax_scale, query, params.num_queries);
  }
}

// First pass, and dq with it where all keys are in shared memory and the queries pass by. A round of the loop over keys
// is a group of them for each warp; with fewer groups than warps in a chunk, the warps share out the queries too.
template <typename Traits>
__device__ __forceinline__ void write_dk_dv(const BwdBlock<Traits>& block, const ShortAttentionBwdParams& params) {
  constexpr int kRoundKeys = Traits::kWarps * Traits::kKeys, kLog2Warps = 2;
  static_assert(Traits::kWarps == 1 << kLog2Warps);
  const bool has_all_keys = Traits::kIsResident || params.num_keys <= block.key_rows;
  const bool has_all_queries = Traits::kIsResident || params.num_queries <= block.query_rows;
#pragma unroll 1
  for (int first_key = 0; first_key < params.num_keys; first_key += kRoundKeys) {
    const bool needs_keys = first_key > 0 && !has_all_keys;
    if (needs_keys) {
      sync_threads();  // everyone is done with the keys before
      load_keys(block, params, first_key);
    }
    // Of the warp's index, the lower bits are its group of keys and the rest its part of the queries.
    const int groups = ceil_div(params.num_keys - first_key, Traits::kKeys);
    const bool shares = groups <= Traits::kWarps / 2 && !(has_all_keys && first_key > 0);
    const int group_bits = shares ? groups - 1 : kLog2Warps, parts = Traits::kWarps >> group_bits;
    const int part = warp_index() >> group_bits, group = warp_index() & ((1 << group_bits) - 1);
    float dk[Traits::kKeyTiles][Traits::kD / 8][4] = {}, dv[Traits::kKeyTiles][Traits::kD / 8][4] = {};
#pragma unroll 1
    for (int first_query = 0; first_query < params.num_queries; first_query += block.query_rows) {
      if (!has_all_queries) {
        if (first_query > 0 || first_key > 0) sync_threads();
        load_queries(block, params, first_query);
        if (first_key == 0) compute_stats<Traits, 2>(block, params, first_query);
      }
      if (!has_all_queries || needs_keys || first_key == 0) wait_for_copies();
      if (group < groups) {
        const int queries_here = smaller(params.num_queries - first_query, block.query_rows);
        add_dk_dv<Traits>(dk, dv, block, (has_all_keys ? first_key : 0) + group * Traits::kKeys, first_query,
                          queries_here, part, parts);
      }
      if (has_all_keys && !has_all_queries)
        write_dq_of_chunk<Traits, Traits::kPassingTiles>(block, params, first_query);
    }
    if (parts > 1) reduce_over_parts<Traits>(dk, dv, block, group, part, parts);
    if (group < groups && part == 0) {
      const int key = first_key + group * Traits::kKeys;
      store_gradient<Traits>(block, params.dk, 1, dk, params.softmax_scale, key, params.num_keys);
      store_gradient<Traits>(block, params.dv, 2, dv, 1.0f, key, params.num_keys);
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
      add_dq<Traits>(dq, block, row, query, keys_here);
    }
    store_gradient<Traits>(block, params.dq, 0, dq, params.softmax_scale, query, params.num_queries);
  }
}

template <typename Traits>
__global__ void __launch_bounds__(Traits::kThreads, Traits::kMinBlocks)
    short_attention_bwd_kernel(const ShortAttentionBwdParams params, const int key_rows, const int query_rows) {
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
  load_keys(block, params, 0);
  if (Traits::kIsResident || params.num_queries <= query_rows) {
    load_queries(block, params, 0);
    compute_stats<Traits, 4>(block, params, 0);
  }
  write_dk_dv(block, params);
  if constexpr (Traits::kIsResident) {
    write_dq_of_chunk<Traits, Traits::kRowTiles>(block, params, 0);
  } else if (params.num_keys > key_rows) {
    write_dq_streamed(block, params);
  }
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

template <typename T, int kHeadDim>
const char* launch_short_attention_bwd(const ShortAttentionBwdParams& params, void* stream) {
  const auto plan = plan_short_attention_bwd(params.num_queries, params.num_keys, kHeadDim, params.dbias != nullptr);
  const auto kernel = plan.resident ? short_attention_bwd_kernel<ShortAttentionBwdTraits<T, kHeadDim, true>>
                                    : short_attention_bwd_kernel<ShortAttentionBwdTraits<T, kHeadDim, false>>;
  return launch(kernel, Grid{params.batch, params.heads}, plan.warps * kWarpSize, plan.smem_bytes, stream, params,
                plan.key_rows, plan.query_rows);
}

}  // namespace lgfast
