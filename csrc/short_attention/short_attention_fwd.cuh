// out = softmax(softmax_scale * q k^T) v and lse = log sum exp, for short sequences.
//
// A block owns one (batch, head), or a share of its queries; K and V of the head lie in shared memory, all of them
// where they fit. A warp owns tiles of 16 or 32 queries: scores = q k^T in registers, softmax, out += p v. The next
// tile's q is copied while this one is computed. Two shapes of the loop over keys:
//   full row  up to 256 keys: the whole row of scores in registers, so one maximum, one sum and no rescaling; compiled
//             for a few capacities, the tiles a length does not need are skipped by a branch all lanes take alike;
//   slabs     more keys: 32 at a time with online softmax.
// Numerics: products of T summed in float32, softmax in float32 by exp2 with log2(e) in the scale, p rounded to T, out
// rounded once. Deterministic. Follows FlashAttention-2 (arXiv 2307.08691), and NVIDIA apex's contrib fmha for the
// one-block-per-head structure.
#pragma once

#include "short_attention/tiles.cuh"

namespace lgfast {

// kRowCapacity: one of kRowCapacities, or kSlabs.
template <typename T, int kHeadDim, int kRowCapacity>
struct ShortAttentionFwdTraits {
  using Element = T;
  static constexpr int kD = kHeadDim;
  static constexpr bool kIsFullRow = kRowCapacity != kSlabs;
  static constexpr int kRowTiles = fwd_row_tiles(kRowCapacity);
  static constexpr int kRows = kRowTiles * kTileRows;
  static constexpr int kSlabTiles = (kIsFullRow ? kRowCapacity : kSlabKeys) / kTileRows;
  static constexpr int kSureTiles = kIsFullRow ? fewest_tiles(kRowCapacity) : 1;  // of the last slab
  static constexpr int kMaxThreads = fwd_max_warps(kRowCapacity, kHeadDim) * kWarpSize;
  static constexpr int kMinBlocks = fwd_blocks(kRowCapacity, kHeadDim);
};

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
using FwdTile = SmemTile<typename Traits::Element, Traits::kD>;
template <typename Traits>
using FwdScores = float[Traits::kSlabTiles][Traits::kRowTiles][2][4];
template <typename Traits>
using FwdQueries = uint32_t[Traits::kD / 16][Traits::kRowTiles][4];

// Masks the scores of keys from `keys_left` on; the tiles before the last sure one have none of them.
template <typename Traits>
__device__ __forceinline__ void mask_scores(FwdScores<Traits>& scores, int keys_left) {
#pragma unroll
  for (int t = Traits::kSureTiles - 1; t < Traits::kSlabTiles; ++t) {
#pragma unroll
    for (int i = 0; i < Traits::kRowTiles * 8; ++i) {
      const int key = t * kTileRows + 8 * (i / 4 % 2) + 2 * (lane_index() % 4) + i % 2;
      if (key >= keys_left) scores[t][i / 8][i / 4 % 2][i % 4] = negative_infinity();
    }
  }
}

// Takes the slab's scores into the rows' maximum; what was summed before is rescaled to it.
template <typename Traits>
__device__ __forceinline__ void update_maximum(FwdRows<Traits>& rows, const FwdScores<Traits>& scores, int tiles,
                                               float scale_log2) {
  float maximum[Traits::kRowTiles][2];
#pragma unroll
  for (int i = 0; i < Traits::kRowTiles * 2; ++i) maximum[i / 2][i % 2] = negative_infinity();
#pragma unroll
  for (int t = 0; t < Traits::kSlabTiles; ++t) {
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
    if constexpr (!Traits::kIsFullRow) {
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

// The slab of keys at the start of the tiles; `keys_left` of them exist.
template <typename Traits, bool kTail>
__device__ __forceinline__ void fwd_slab(FwdRows<Traits>& rows, const FwdQueries<Traits>& q, FwdTile<Traits> keys,
                                         FwdTile<Traits> values, int keys_left, float scale_log2) {
  constexpr int kRowTiles = Traits::kRowTiles, kSlabTiles = Traits::kSlabTiles;
  constexpr int kSureTiles = kTail ? Traits::kSureTiles : kSlabTiles;  // these without a branch
  const int tiles = kSureTiles < kSlabTiles ? ceil_div(keys_left, kTileRows) : kSlabTiles;
  FwdScores<Traits> scores = {};
#pragma unroll
  for (int step = 0; step < Traits::kD / 16; ++step) {
#pragma unroll
    for (int t = 0; t < kSureTiles; ++t) multiply_abt_step(scores[t], q[step], keys.below(t * kTileRows), step);
  }
#pragma unroll
  for (int t = kSureTiles; t < kSlabTiles; ++t) {
    if (t < tiles) multiply_abt(scores[t], q, keys.below(t * kTileRows));
  }
  if constexpr (kTail) mask_scores<Traits>(scores, keys_left);
  update_maximum<Traits>(rows, scores, tiles, scale_log2);
#pragma unroll
  for (int t = 0; t < kSlabTiles; ++t) {
    if (t >= tiles) continue;
    uint32_t p[kRowTiles][4];
#pragma unroll
    for (int i = 0; i < kRowTiles * 8; ++i) {
      const int r = i / 8, half = i / 2 % 2;
      float& score = scores[t][r][i / 4 % 2][i % 4];
      score = fast_exp2(score * scale_log2 - rows.maximum[r][half]);
      rows.sum[r][half] += score;
    }
#pragma unroll
    for (int r = 0; r < kRowTiles; ++r) pack_a<typename Traits::Element>(p[r], scores[t][r]);
    multiply_ab(rows.out, p, values.below(t * kTileRows));
  }
}

template <typename Traits>
__device__ __forceinline__ void store_out(const FwdRows<Traits>& rows, const ShortAttentionFwdParams& params, int b,
                                          int h, int first) {
  using T = typename Traits::Element;
  T* out = head_rows<T>(params.out, b, h);
  float* lse = params.lse + (int64_t(b) * params.heads + h) * params.num_queries;
#pragma unroll
  for (int r = 0; r < Traits::kRowTiles; ++r) {
    float inverse[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum = rows.sum[r][half];
      sum += shfl_xor(sum, 1);
      sum += shfl_xor(sum, 2);
      inverse[half] = 1.0f / sum;
      const int row = first + r * kTileRows + 8 * half + lane_index() / 4;
      if (lane_index() % 4 == 0 && row < params.num_queries) {
        lse[row] = (rows.maximum[r][half] + fast_log2(sum)) * kLn2;
      }
    }
    store_rows<T, Traits::kD>(out, params.out.token_stride, rows.out[r], inverse[0], inverse[1], first + r * kTileRows,
                              params.num_queries);
  }
}

template <typename Traits>
__global__ void __launch_bounds__(Traits::kMaxThreads, Traits::kMinBlocks)
    short_attention_fwd_kernel(const ShortAttentionFwdParams params, const int key_rows) {
  using T = typename Traits::Element;
  using Tile = FwdTile<Traits>;
  constexpr int kRows = Traits::kRows;
  const int b = block_index(), h = block_index_y();
  const int warp = warp_index();
  const float scale_log2 = params.softmax_scale * kLog2E;

  const Tile keys{reinterpret_cast<T*>(dynamic_smem())};
  const Tile values = keys.below(key_rows), queries = values.below(key_rows + warp * kRows);  // queries: this warp's

  const int chunks = Traits::kIsFullRow ? 1 : ceil_div(params.num_keys, key_rows);
  const int first_base = block_index_z() * num_warps() * kRows, step = grid_size_z() * num_warps() * kRows;
  const auto load_queries = [&](int first) {
    load_rows_async(queries, head_rows<T>(params.q, b, h), params.q.token_stride, first, kRows, params.num_queries,
                    lane_index(), kWarpSize);
  };
  const auto load_keys = [&](int chunk) {
    const int first = chunk * key_rows;
    load_rows_async(keys, head_rows<T>(params.k, b, h), params.k.token_stride, first, key_rows, params.num_keys,
                    thread_index(), block_size());
    load_rows_async(values, head_rows<T>(params.v, b, h), params.v.token_stride, first, key_rows, params.num_keys,
                    thread_index(), block_size());
  };

  load_queries(first_base + warp * kRows);
  load_keys(0);
  cp_async_commit();
  cp_async_wait<0>();
  sync_threads();
#pragma unroll 1
  for (int base = first_base; base < params.num_queries; base += step) {  // the same rounds for all warps
    const int first = base + warp * kRows;
    const bool has_rows = first < params.num_queries;
    FwdRows<Traits> rows;
    FwdQueries<Traits> q;
    for (int chunk = 0; chunk < chunks; ++chunk) {
      if (chunks > 1 && (chunk > 0 || base > first_base)) {
        sync_threads();  // everyone is done with the keys before
        load_keys(chunk);
        cp_async_commit();
        cp_async_wait<0>();
        sync_threads();
      }
      if (!has_rows) continue;
      if (chunk == 0) {
        cp_async_wait<0>();
        sync_warp();  // the other lanes' copies of the queries
        load_a(q, queries);
        sync_warp();
        if (first + step < params.num_queries) load_queries(first + step);
        cp_async_commit();
      }
      const int keys_here = smaller(params.num_keys - chunk * key_rows, key_rows);
      int slab = 0;
      for (; !Traits::kIsFullRow && slab + kSlabKeys <= keys_here; slab += kSlabKeys) {
        fwd_slab<Traits, false>(rows, q, keys.below(slab), values.below(slab), kSlabKeys, scale_log2);
      }
      if (Traits::kIsFullRow || slab < keys_here) {
        fwd_slab<Traits, true>(rows, q, keys.below(slab), values.below(slab), keys_here - slab, scale_log2);
      }
    }
    if (has_rows) store_out<Traits>(rows, params, b, h, first);
  }
  cp_async_wait<0>();
}

template <typename Traits>
const char* launch_fwd(const ShortAttentionFwdParams& params, const ShortAttentionFwdPlan& plan, void* stream) {
  const Grid grid{params.batch, params.heads, plan.query_splits};
  return launch(short_attention_fwd_kernel<Traits>, grid, plan.warps * kWarpSize, plan.smem_bytes, stream, params,
                plan.key_rows);
}

template <typename T, int kHeadDim>
const char* launch_short_attention_fwd(const ShortAttentionFwdParams& params, void* stream) {
  const auto plan = plan_short_attention_fwd(params.batch * params.heads, params.num_queries, params.num_keys, kHeadDim,
                                             num_multiprocessors());
  switch (plan.row_capacity) {
    case 64: return launch_fwd<ShortAttentionFwdTraits<T, kHeadDim, 64>>(params, plan, stream);
    case 128: return launch_fwd<ShortAttentionFwdTraits<T, kHeadDim, 128>>(params, plan, stream);
    case 192: return launch_fwd<ShortAttentionFwdTraits<T, kHeadDim, 192>>(params, plan, stream);
    case 208: return launch_fwd<ShortAttentionFwdTraits<T, kHeadDim, 208>>(params, plan, stream);
    case 256: return launch_fwd<ShortAttentionFwdTraits<T, kHeadDim, 256>>(params, plan, stream);
    default: return launch_fwd<ShortAttentionFwdTraits<T, kHeadDim, kSlabs>>(params, plan, stream);
  }
}

}  // namespace lgfast
