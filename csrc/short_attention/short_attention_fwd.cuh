// out = softmax(softmax_scale * q k^T) v and lse = log sum exp, for short sequences.
//
// A block owns one (batch, head), or a share of its queries. K and V of the head lie in shared memory: all of them
// where they fit, otherwise one chunk at a time, and every round of queries copies the chunks again. A warp owns 32
// queries at a time, so that each read of a key serves two products. It walks the keys in slabs with online softmax:
// for a slab it forms scores in registers and adds p v to out. Meanwhile its next queries are copied. Slabs are as
// large as registers allow: up to 128 keys are one slab, which needs no rescaling, and up to 208 are two. Kernels are
// compiled for a few capacities; a branch that all lanes take alike skips the tiles of 16 keys that the last slab of a
// length does not need.
//
// Numerics: products of T summed in float32, softmax in float32 by exp2 with log2(e) in the scale, p rounded to T, out
// rounded once. Deterministic. Follows FlashAttention-2 (arXiv 2307.08691), and NVIDIA apex's contrib fmha for the
// one-block-per-head structure.
#pragma once

#include "short_attention/tiles.cuh"

namespace lgfast {

// kRowCapacity: one of kRowCapacities, or kAnyLength.
template <typename T, int kHeadDim, int kRowCapacity>
struct ShortAttentionFwdTraits {
  using Element = T;
  static constexpr int kD = kHeadDim;
  static constexpr bool kIsLoop = kRowCapacity == kAnyLength;
  static constexpr int kRowTiles = kFwdRowTiles;
  static constexpr int kRows = kFwdWarpRows;
  // Keys of every slab before the last; 0 where the last is the only one.
  static constexpr int kFullSlabKeys = kIsLoop ? kLoopSlabKeys : kRowCapacity > 128 ? kFirstOfTwoSlabsKeys : 0;
  // Tiles of the last slab.
  static constexpr int kMostTiles = (kIsLoop ? kLoopSlabKeys : kRowCapacity - kFullSlabKeys) / kTileRows;
  static constexpr int kSureTiles = kIsLoop ? 1 : fewest_tiles(kRowCapacity) - kFullSlabKeys / kTileRows;
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
      inverse[half] = fast_reciprocal(sum);
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
  // Some warps get a round more than others. They must not all run on one quarter of the multiprocessor.
  const int warp = (warp_index() + b + b / 4) % num_warps();
  const float scale_log2 = params.softmax_scale * kLog2E;

  const Tile keys{smem_address(dynamic_smem())};
  const Tile values = keys.below(key_rows), queries = values.below(key_rows + warp * kRows);  // queries: this warp's

  const int chunks = Traits::kIsLoop ? ceil_div(params.num_keys, key_rows) : 1;
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
      }
      const int keys_here = smaller(params.num_keys - chunk * key_rows, key_rows);
      constexpr int kFullKeys = Traits::kFullSlabKeys, kTiles = kFullKeys / kTileRows;
      int last = Traits::kIsLoop ? 0 : kFullKeys;  // where the last slab begins
      const auto nothing = [] {};
      if constexpr (Traits::kIsLoop) {
#pragma unroll 1
        for (; last + kFullKeys < keys_here; last += kFullKeys) {
          fwd_slab<Traits, kTiles, kTiles, false>(rows, queries, keys.below(last), values.below(last), kFullKeys,
                                                  scale_log2, nothing);
        }
      } else if constexpr (kFullKeys > 0) {
        // Always true. The compiler does not know that, so it keeps the code of the slabs, and their scores, apart.
        if (keys_here > kFullKeys) {
          fwd_slab<Traits, kTiles, kTiles, true>(rows, queries, keys, values, kFullKeys, scale_log2, nothing);
        }
      }
      fwd_slab<Traits, Traits::kMostTiles, Traits::kSureTiles, kFullKeys == 0>(
          rows, queries, keys.below(last), values.below(last), keys_here - last, scale_log2, [&] {
            if (chunk < chunks - 1) return;
            sync_warp();
            if (first + step < params.num_queries) load_queries(first + step);
            cp_async_commit();
          });
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
                                             num_multiprocessors(), max_smem_bytes());
  switch (plan.row_capacity) {
    case 64: return launch_fwd<ShortAttentionFwdTraits<T, kHeadDim, 64>>(params, plan, stream);
    case 128: return launch_fwd<ShortAttentionFwdTraits<T, kHeadDim, 128>>(params, plan, stream);
    case 192: return launch_fwd<ShortAttentionFwdTraits<T, kHeadDim, 192>>(params, plan, stream);
    case 208: return launch_fwd<ShortAttentionFwdTraits<T, kHeadDim, 208>>(params, plan, stream);
    default: return launch_fwd<ShortAttentionFwdTraits<T, kHeadDim, kAnyLength>>(params, plan, stream);
  }
}

}  // namespace lgfast
