// Gradients of short_attention where a block holds all keys of a head: five products, each formed once.
//
// A block stays on its multiprocessor and takes head after head. K and V of a head lie in the registers of the key
// warps, 32 keys each, beside dk and dv. The block walks the head's queries in slabs, which are copied some slabs
// ahead, also across heads. For a slab, a key warp forms s^T = k q^T and dp^T = v dout^T and, without leaving
// registers, dv += p^T dout and dk += ds^T q. Only ds goes through shared memory. The query warps, those without keys,
// form dq = ds k of the slab before and delta of the slab to come. Where there is only one query warp, a key warp with
// few keys forms half of dq. So one barrier a slab is enough. Where there are few keys, several warps share a group of
// them and divide the queries of a larger slab among them; their sums are added in a fixed order.
#pragma once

#include "short_attention/resident_keys.cuh"
#include "short_attention/resident_queries.cuh"

namespace lgfast {

// Walks the slabs as a warp that owns kTiles x 16 keys.
template <typename Traits, int kTiles>
__device__ __forceinline__ void run_key_warp(const ResidentBlock<Traits>& block, const ShortAttentionBwdParams& params,
                                             SlabPosition first, const float scale_log2) {
  using T = typename Traits::Element;
  constexpr int kD = Traits::kD;
  const int group = block.role % block.plan.key_groups, part = block.role / block.plan.key_groups;
  const int key = group * kResidentGroup, own_row = part * kResidentGroup;
  KeySums<kD, kTiles> sums;
  uint32_t k[kD / 16][kTiles][4], v[kD / 16][kTiles][4];
  const bool forms_dq = kTiles == 1 && block.role == block.key_warps() - 1 && block.splits_dq(params.num_keys);
  DqWriter<Traits, 1> dq{block, params, 1, 2, Traits::kWarps - 1, 1};
  for_each_slab(block, params, first, [&](const SlabPosition& at, Head) {
    if (forms_dq) dq.write_last(at);
    if (at.slab == 0) {
      if (at.count > 0 && part == 0) write_dk_dv(block, params, sums, at.count - 1, block.before(at.head), group);
      sums = {};
      load_a(k, block.keys(at.count).below(key));
      load_a(v, block.values().below(key));
    }
    if (at.head.b >= params.batch) return;
    const auto queries = block.queries(at.step).below(own_row), douts = block.douts(at.step).below(own_row);
    const QueryStats* stats = block.stats(at.step) + own_row;
    const ScoreTile scores = block.scores(at.step, part).below(key);
    const int left = smaller(params.num_queries - at.slab * block.plan.query_rows - own_row, kResidentGroup);
#pragma unroll 1
    for (int row = 0; row < left; row += kTileRows) {
      add_dk_dv<T>(sums, k, v, queries.below(row), douts.below(row), stats + row, scores, row / 8, scale_log2);
    }
    if (at.slab == block.plan.slabs - 1 && part > 0) {
      const float* values = &sums.dk[0][0][0];
#pragma unroll
      for (int i = 0; i < sums.kValues; ++i) block.scratch_of(part, group)[i * kWarpSize] = values[i];
    }
  });
}

// Walks the slabs as one of the warps without keys, which take turns at kTiles x 16 queries.
template <typename Traits, int kTiles>
__device__ __forceinline__ void run_query_warp(const ResidentBlock<Traits>& block,
                                               const ShortAttentionBwdParams& params, SlabPosition first) {
  const int index = block.role - block.key_warps(), warps = Traits::kWarps - block.key_warps();
  const bool splits = block.splits_dq(params.num_keys);
  StatsWriter<Traits> stats{block, params, index, warps};
  DqWriter<Traits, kTiles> dq{block, params, index, splits ? 2 : warps, block.role, 0};
  stats.start(first.head);
  for_each_slab(block, params, first, [&](const SlabPosition& at, Head next) {
    stats.write_next(at, next);
    dq.write_last(at);
  });
}

template <typename Traits>
__global__ void __launch_bounds__(Traits::kThreads, 1)
    short_attention_bwd_resident_kernel(const ShortAttentionBwdParams params, const ShortAttentionBwdPlan plan,
                                        const float scale_log2) {
  ResidentBlock<Traits> block;
  block.plan = plan;
  block.first_tile = {smem_address(dynamic_smem())};
  const int tile_rows = 3 * (plan.key_rows + kResidentSlabs * plan.query_rows);
  unsigned char* rest = dynamic_smem() + tile_rows * Traits::Tile::kRowBytes;
  block.first_scores = {smem_address(rest)};
  rest += 2 * plan.parts * plan.key_rows * ScoreTile::kRowBytes;
  block.first_stats = reinterpret_cast<QueryStats*>(rest);
  float* sums = reinterpret_cast<float*>(block.first_stats + 2 * plan.query_rows);
  block.first_bias = params.dbias != nullptr ? sums : nullptr;
  block.scratch = sums + (params.dbias != nullptr ? 4 * Traits::kWarps * Traits::kD : 0);
  block.heads = params.heads;
  block.stride = {grid_size() / params.heads, grid_size() % params.heads};
  // The role comes from one lane, so that the compiler sees that all lanes of a warp have the same.
  block.role = shfl(resident_role(block.key_warps()), 0);

  const SlabPosition first{0, 0, 0, {block_index() / params.heads, block_index() % params.heads}};
  start_keys(block, params, 0, first.head);
#pragma unroll 1
  for (int slab = 0; slab < kResidentSlabs - 1; ++slab) {
    start_slab(block, params, slab, slab, first.head);
    cp_async_commit();
  }
  cp_async_wait<kResidentSlabs - 2>();
  sync_threads();
  const int first_key = block.role % plan.key_groups * kResidentGroup;
  if (block.role >= block.key_warps()) {
    if (Traits::kWarps - block.key_warps() <= plan.parts && !block.splits_dq(params.num_keys)) {
      run_query_warp<Traits, 2>(block, params, first);
    } else {
      run_query_warp<Traits, 1>(block, params, first);
    }
  } else if (params.num_keys - first_key > kTileRows) {
    run_key_warp<Traits, 2>(block, params, first, scale_log2);
  } else {
    run_key_warp<Traits, 1>(block, params, first, scale_log2);
  }
}

}  // namespace lgfast
