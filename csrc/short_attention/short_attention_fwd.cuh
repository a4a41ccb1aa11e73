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

#include "short_attention/fwd_rows.cuh"
#include "short_attention/short_attention_fwd_wgmma.cuh"

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
                                             num_multiprocessors(), max_smem_bytes(), has_wgmma());
  if constexpr (kHeadDim == 64) {
    if (plan.wgmma) return launch_fwd_wgmma<ShortAttentionFwdWgmmaTraits<T>>(params, plan, stream);
  }
  switch (plan.row_capacity) {
    case 64: return launch_fwd<ShortAttentionFwdTraits<T, kHeadDim, 64>>(params, plan, stream);
    case 128: return launch_fwd<ShortAttentionFwdTraits<T, kHeadDim, 128>>(params, plan, stream);
    case 192: return launch_fwd<ShortAttentionFwdTraits<T, kHeadDim, 192>>(params, plan, stream);
    case 208: return launch_fwd<ShortAttentionFwdTraits<T, kHeadDim, 208>>(params, plan, stream);
    default: return launch_fwd<ShortAttentionFwdTraits<T, kHeadDim, kAnyLength>>(params, plan, stream);
  }
}

}  // namespace lgfast
