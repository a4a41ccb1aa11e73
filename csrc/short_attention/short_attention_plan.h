// How short_attention cuts a shape into blocks and shared memory. Plain host arithmetic, so that the CPU build, the
// tests and the documentation read the same numbers the launch uses.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/host_device.h"
#include "common/switches.h"

namespace lgfast {

constexpr int kTileRows = 16;       // rows of one mma tile
constexpr int kMaxSequence = 1024;  // queries and keys
constexpr int kFewKeys = 64;        // up to here, kMaxQueriesFewKeys queries are taken
constexpr int kMaxQueriesFewKeys = 4096;

LGFAST_HOST_DEVICE constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }
LGFAST_HOST_DEVICE constexpr int smaller(int a, int b) { return a < b ? a : b; }
LGFAST_HOST_DEVICE constexpr int round_up(int a, int b) { return ceil_div(a, b) * b; }

// Bytes of one row of D 16-bit values in shared memory. D = 48 is padded by 16 bytes: an odd number of 16-byte chunks a
// row spreads eight rows over all banks; D = 32 and 64 do it by swizzling (SmemTile in tiles.cuh).
LGFAST_HOST_DEVICE constexpr int smem_row_bytes(int head_dim) { return head_dim == 48 ? 112 : 2 * head_dim; }

// The scores of a slab of keys stay in registers. Up to 208 keys are one slab of at most 128, and a second one of the
// rest. A kernel is compiled for each of these capacities; one of them takes the lengths above the capacity before it,
// and counts the tiles of its last slab at run time. 208 is for 193 to 208 keys alone, 14 x 14 + 1 tokens of a ViT,
// whose number of tiles is thereby a constant.
constexpr int kRowCapacities[] = {64, 128, 192, 208};
constexpr int kFirstSlabKeys = 112;
constexpr int kSlabs = 0;  // in place of a capacity: more keys, in slabs of kSlabKeys
constexpr int kSlabKeys = 64;

// The smallest capacity that holds the keys, or kSlabs.
constexpr int row_capacity(int num_keys) {
  for (const int capacity : kRowCapacities) {
    if (num_keys <= capacity) return capacity;
  }
  return kSlabs;
}

// Tiles of keys that every length served by a capacity has.
constexpr int fewest_tiles(int capacity) {
  int below = 0;
  for (const int other : kRowCapacities) {
    if (other < capacity) below = other;
  }
  return below / kTileRows + 1;
}

constexpr int kFwdRowTiles = 2;  // tiles of queries a warp holds, so that each key read serves two products
// What the kernels are compiled for (__launch_bounds__): warps of a block, and blocks on a multiprocessor at once.
// Four blocks of four warps leave a thread 128 registers, three 168, two 255; which kernels fit is the compiler's
// report.
constexpr int fwd_blocks(int capacity, int head_dim) {
  if (capacity > 64 || capacity == kSlabs) return 2;
  return head_dim == 32 ? 4 : 3;
}
constexpr int fwd_max_warps(int capacity, int head_dim) { return capacity == kSlabs && head_dim == 32 ? 6 : 4; }

struct ShortAttentionFwdPlan {
  int row_capacity;   // keys of the longest row the kernel takes, or kSlabs
  int warps;          // of a block
  int rows_per_warp;  // queries one warp holds at a time
  int key_rows;       // keys in shared memory at a time; all of them where they fit
  int query_splits;   // blocks that share one (batch, head)
  int smem_bytes;     // K, V, and a buffer of queries a warp
};

// Into how many blocks to divide the queries of a head: more blocks fill the last wave better, and copy K and V more
// often. Counted in rows copied by the multiprocessor that has most to do.
inline int fwd_query_splits(const ShortAttentionFwdPlan& plan, int batch_heads, int num_queries, int slots) {
  const int round_rows = plan.warps * plan.rows_per_warp;
  const int rounds = ceil_div(num_queries, round_rows);
  const auto busiest = [&](int splits) {
    return int64_t(ceil_div(batch_heads * splits, slots)) * (plan.key_rows + ceil_div(rounds, splits) * round_rows);
  };
  int best = 1;
  for (int splits = 2; splits <= rounds; ++splits) {
    if (busiest(splits) < busiest(best)) best = splits;
  }
  return best;
}

inline ShortAttentionFwdPlan plan_short_attention_fwd(int batch_heads, int num_queries, int num_keys, int head_dim,
                                                      int multiprocessors) {
  constexpr int kMostKeyBytes = 96 * 1024;
  const int row_bytes = smem_row_bytes(head_dim);
  const int padded = round_up(num_keys, kTileRows);
  const int chunks = ceil_div(padded, kMostKeyBytes / (2 * row_bytes) / kTileRows * kTileRows);
  ShortAttentionFwdPlan plan{};
  plan.row_capacity = row_capacity(num_keys);
  plan.rows_per_warp = kFwdRowTiles * kTileRows;
  plan.key_rows = round_up(ceil_div(padded, chunks), kTileRows);
  // Keys that leave room for two blocks only: more warps in each.
  const bool is_large = 2 * plan.key_rows * row_bytes > kMostKeyBytes / 2;
  plan.warps = is_large ? fwd_max_warps(plan.row_capacity, head_dim) : 4;
  plan.warps = std::min(plan.warps, ceil_div(num_queries, plan.rows_per_warp));
  const int slots = multiprocessors * fwd_blocks(plan.row_capacity, head_dim);
  plan.query_splits = fwd_query_splits(plan, batch_heads, num_queries, slots);
  plan.smem_bytes = row_bytes * (2 * plan.key_rows + plan.warps * plan.rows_per_warp);
  return plan;
}

struct ShortAttentionBwdPlan {
  bool resident;   // K and V of a head are on chip at once and its queries pass by; otherwise both are streamed
  int warps;       // of a block
  int key_rows;    // keys in shared memory at a time
  int query_rows;  // queries in shared memory at a time; resident: of a slab
  int key_groups;  // resident: groups of 32 keys
  int parts;       // resident: groups of 32 queries in a slab; a key group has a warp for each
  int slabs;       // resident: of queries, walked for every head
  int smem_bytes;
};

constexpr int kBwdWarps = 4;                    // streamed
constexpr int kBwdRowsPerWarp = 2 * kTileRows;  // streamed: queries a warp owns for dq
// Streamed: keys a warp owns for dk and dv, two tiles where their accumulators fit in registers.
constexpr int bwd_keys_per_warp(int head_dim) { return (head_dim == 32 ? 2 : 1) * kTileRows; }

constexpr int kResidentWarps = 8;              // one block a multiprocessor, 255 registers a thread
constexpr int kResidentGroup = 2 * kTileRows;  // keys of a key warp, and queries of a slab that it takes
constexpr int kResidentSlabs = 4;              // of queries in shared memory: at work, next, and two on their way
constexpr int kMaxParts = 3;
constexpr int kFewestKeyWarps = 5;  // fewer leave a multiprocessor idle: two blocks of the streamed kernel do more
constexpr int kBwdSmemBytes = 163 * 1024;  // of a block on sm_80; sm_90 and sm_100 have more

// False where the keys need more warps, or shared memory, than a block has, or too few warps.
inline bool plan_resident_bwd(ShortAttentionBwdPlan& plan, int num_queries, int num_keys, int head_dim, bool has_bias,
                              int max_smem) {
  const int row_bytes = smem_row_bytes(head_dim), groups = ceil_div(num_keys, kResidentGroup);
  constexpr int kMostKeyWarps = kResidentWarps - 1;
  if (groups > kMostKeyWarps) return false;
  constexpr int kFewestSlabs = kResidentSlabs - 1;
  const int most_parts = ceil_div(num_queries, kFewestSlabs * kResidentGroup);
  for (int parts = std::min({kMaxParts, kMostKeyWarps / groups, most_parts}); groups * parts >= kFewestKeyWarps;
       --parts) {
    const int key_rows = round_up(num_keys, kTileRows), query_rows = parts * kResidentGroup;
    // K twice, V, and q, dout, out of each slab; ds, lse and delta of two slabs.
    const int tile_bytes = row_bytes * 3 * (key_rows + kResidentSlabs * query_rows);
    const int slab_bytes = 2 * query_rows * (2 * key_rows + 2 * 4);
    const int bias_bytes = has_bias ? 2 * kResidentWarps * 2 * head_dim * 4 : 0;
    const int scratch_bytes = (parts - 1) * groups * 2 * kResidentGroup * head_dim * 4;
    plan = {true,
            kResidentWarps,
            key_rows,
            query_rows,
            groups,
            parts,
            std::max(ceil_div(num_queries, query_rows), kFewestSlabs),
            tile_bytes + slab_bytes + bias_bytes + scratch_bytes};
    if (plan.smem_bytes <= max_smem) return true;
  }
  return false;
}

inline ShortAttentionBwdPlan plan_short_attention_bwd(int num_queries, int num_keys, int head_dim, bool has_bias,
                                                      int max_smem = kBwdSmemBytes) {
  ShortAttentionBwdPlan plan{};
  if (!is_switched_off("short_attention_bwd_resident") &&
      plan_resident_bwd(plan, num_queries, num_keys, head_dim, has_bias, std::min(max_smem, kBwdSmemBytes)))
    return plan;
  const int row_bytes = smem_row_bytes(head_dim), keys_per_warp = bwd_keys_per_warp(head_dim);
  plan = {};
  plan.warps = kBwdWarps;
  plan.key_rows = kBwdWarps * keys_per_warp;
  plan.query_rows = kBwdWarps * kBwdRowsPerWarp;
  // Warps that share a group of keys add up its dk, dv in scratch. Only the last chunk can have so few groups.
  const int last_groups = ceil_div((num_keys - 1) % plan.key_rows + 1, keys_per_warp);
  const int scratch_bytes = 2 * last_groups <= kBwdWarps ? last_groups * keys_per_warp * head_dim * 4 : 0;
  const int stats_bytes = 2 * 4 * round_up(num_queries, plan.query_rows);
  const int bias_bytes = has_bias ? kBwdWarps * 3 * head_dim * 4 : 0;
  plan.smem_bytes = 2 * row_bytes * (plan.key_rows + plan.query_rows) + stats_bytes + bias_bytes + scratch_bytes;
  return plan;
}

}  // namespace lgfast
