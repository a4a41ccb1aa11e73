// Plans how short_attention splits a shape over blocks and their shared memory, on a GPU whose blocks can have
// `max_smem` bytes of it. This is plain host arithmetic and the only place that decides: the launch, the operation's
// refusals, the tests, the doctor and the documentation read the same numbers.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/arithmetic.h"
#include "common/switches.h"

namespace lgfast {

constexpr int kTileRows = 16;       // rows of one mma tile
constexpr int kMaxSequence = 1024;  // queries and keys
constexpr int kFewKeys = 64;        // with so many keys or fewer, kMaxQueriesFewKeys queries are taken
constexpr int kMaxQueriesFewKeys = 4096;

// Bytes of one row of D 16-bit values in shared memory. A row of D = 48 is padded by 16 bytes: an odd number of 16-byte
// chunks a row spreads eight rows over all banks. For D = 32 and 64 swizzling does that (SmemTile in tiles.cuh).
LGFAST_HOST_DEVICE constexpr int smem_row_bytes(int head_dim) { return head_dim == 48 ? 112 : 2 * head_dim; }

// How many blocks of `smem_bytes` the shared memory of a multiprocessor holds. CUDA keeps 1 KB for itself beside each
// block. On every GPU from sm_80 on, a multiprocessor has 1 KB more than one block can have.
constexpr int kReservedSmemBytes = 1024;
constexpr int blocks_in_smem(int smem_bytes, int max_smem) {
  return (max_smem + kReservedSmemBytes) / (smem_bytes + kReservedSmemBytes);
}
constexpr int block_share_of_smem(int blocks, int max_smem) {
  return (max_smem + kReservedSmemBytes) / blocks - kReservedSmemBytes;
}

// Forward takes keys in slabs, and the scores of a slab stay in registers. Up to 128 keys are one slab; up to 208 are a
// slab of kFirstOfTwoSlabsKeys and a second one of the rest. A kernel is compiled for each of these capacities. It
// takes the lengths above the capacity before it, and counts the tiles of its last slab at run time. Capacity 208 is
// for 193 to 208 keys alone, such as the 14 x 14 + 1 tokens of a ViT, so its number of tiles is a constant.
constexpr int kRowCapacities[] = {64, 128, 192, 208};
constexpr int kFirstOfTwoSlabsKeys = 112;
// Stands for the kernel without a capacity, the loop: it takes any number of keys, in slabs of kLoopSlabKeys, and does
// not need all of them in shared memory at once.
constexpr int kAnyLength = 0;
constexpr int kLoopSlabKeys = 64;

// The smallest capacity that holds the keys, or kAnyLength.
constexpr int row_capacity(int num_keys) {
  for (const int capacity : kRowCapacities) {
    if (num_keys <= capacity) return capacity;
  }
  return kAnyLength;
}

// How many tiles of keys the shortest length that a capacity serves has.
constexpr int fewest_tiles(int capacity) {
  int below = 0;
  for (const int other : kRowCapacities) {
    if (other < capacity) below = other;
  }
  return below / kTileRows + 1;
}

constexpr int kFwdRowTiles = 2;  // tiles of queries a warp holds, so that each key read serves two products
constexpr int kFwdWarpRows = kFwdRowTiles * kTileRows;
// What the kernels are compiled for (__launch_bounds__): warps of a block, and blocks on a multiprocessor at once.
// Four blocks of four warps leave a thread 128 registers, three blocks 168, two blocks 255. The compiler reports which
// kernels fit.
constexpr int kFwdWarps = 4;
constexpr int fwd_blocks(int capacity, int head_dim) {
  if (capacity > 64 || capacity == kAnyLength) return 2;
  return head_dim == 32 ? 4 : 3;
}
constexpr int fwd_max_warps(int capacity, int head_dim) {
  return capacity == kAnyLength && head_dim == 32 ? 6 : kFwdWarps;
}

// The kernel of sm_90a that multiplies by warpgroups takes rows of 193 to 208 keys, and as many queries, with D = 64.
constexpr int kWarpgroupWarps = 4;
constexpr int kWarpgroupRows = kWarpgroupWarps * kTileRows;        // queries of one product
constexpr int kWgmmaGroups = 2;                                    // warpgroups of a block
constexpr int kWgmmaPlaces = 8;                                    // of q, k or v of a head in shared memory
constexpr int kWgmmaWarps = (kWgmmaGroups + 2) * kWarpgroupWarps;  // one more copies, one takes the last queries
constexpr int kWgmmaKeys = 208;
constexpr int kWgmmaTiles = kWgmmaKeys / kWarpgroupRows;  // of a head; the queries that are left go eight by eight
constexpr int kLastQueries = 8, kLastKeyTiles = 4;
// Bytes of shared memory: of a place; of results on their way to memory; of the last queries'
// probabilities and results, their maxima and sums; of barriers.
constexpr int kWgmmaPlaceBytes = kWgmmaKeys * 128;
constexpr int kWgmmaStoreBytes = kWgmmaGroups * kWarpgroupWarps * 8 * 128;
constexpr int kWgmmaLastBytes = (kLastKeyTiles + 1) * kLastQueries * 128 + 2 * kWarpgroupWarps * kLastQueries * 4;
constexpr int kWgmmaBarrierBytes = 2 * kWgmmaPlaces * 8;
constexpr int kWgmmaSmemBytes =
    kWgmmaPlaces * kWgmmaPlaceBytes + kWgmmaStoreBytes + kWgmmaLastBytes + kWgmmaBarrierBytes;

struct ShortAttentionFwdPlan {
  bool wgmma;         // blocks stay and multiply by warpgroups
  int row_capacity;   // keys of the longest row the kernel takes, or kAnyLength
  int warps;          // of a block
  int rows_per_warp;  // queries one warp holds at a time
  int key_rows;       // keys in shared memory at a time; wgmma: of each of two heads
  int query_rows;     // wgmma: queries of each of two heads in shared memory
  int blocks;
  int query_splits;  // blocks that share one (batch, head)
  int smem_bytes;    // K, V, and a buffer of queries for each warp; if the GPU has less, no kernel takes the shape
};

constexpr int fwd_smem_bytes(int head_dim, int key_rows, int warps) {
  return smem_row_bytes(head_dim) * (2 * key_rows + warps * kFwdWarpRows);
}

// Returns into how many blocks to divide the queries of a head. More blocks fill the last wave better, but copy K and V
// more often. The best number leaves the busiest multiprocessor the fewest rows to copy.
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

// Returns how many keys a block of at most `smem_bytes` holds at a time, in chunks of one size. A chunk is at least a
// slab, even where the block then needs more than `smem_bytes`.
inline int fwd_chunk_rows(int num_keys, int head_dim, int warps, int smem_bytes) {
  const int padded = round_up(num_keys, kTileRows);
  const int rows = smem_bytes / smem_row_bytes(head_dim) - warps * kFwdWarpRows;
  const int most = std::max(rows / (2 * kTileRows) * kTileRows, kLoopSlabKeys);
  return round_up(ceil_div(padded, ceil_div(padded, most)), kTileRows);
}

// Returns false where that kernel does not take the shape.
inline bool plan_fwd_wgmma(ShortAttentionFwdPlan& plan, int batch_heads, int num_queries, int num_keys, int head_dim,
                           int multiprocessors, int max_smem) {
  const int key_rows = round_up(num_keys, kTileRows), query_rows = round_up(num_queries, kTileRows);
  if (head_dim != 64 || key_rows != kWgmmaKeys || query_rows != kWgmmaKeys) return false;
  plan.wgmma = true;
  plan.row_capacity = kWgmmaKeys;
  plan.warps = kWgmmaWarps;
  plan.rows_per_warp = kTileRows;
  plan.key_rows = key_rows;
  plan.query_rows = query_rows;
  plan.blocks = std::min(batch_heads, multiprocessors);
  plan.query_splits = 1;
  plan.smem_bytes = kWgmmaSmemBytes;
  return plan.smem_bytes <= max_smem;
}

// A kernel with a capacity has all keys in shared memory. The loop holds as many keys at a time as let two blocks fit
// on a multiprocessor, so that one computes while the other waits for keys. Otherwise the plan
// is for one block. has_wgmma: whether the GPU, and the code that was compiled for it, multiplies by warpgroups.
inline ShortAttentionFwdPlan plan_short_attention_fwd(int batch_heads, int num_queries, int num_keys, int head_dim,
                                                      int multiprocessors, int max_smem, bool has_wgmma) {
  ShortAttentionFwdPlan plan{};
  if (has_wgmma && !is_switched_off("short_attention_fwd_wgmma") &&
      plan_fwd_wgmma(plan, batch_heads, num_queries, num_keys, head_dim, multiprocessors, max_smem))
    return plan;
  plan = {};
  plan.rows_per_warp = kFwdWarpRows;
  plan.row_capacity = row_capacity(num_keys);
  plan.key_rows = round_up(num_keys, kTileRows);
  plan.warps = kFwdWarps;
  const int all_keys_bytes = fwd_smem_bytes(head_dim, plan.key_rows, kFwdWarps);
  if (all_keys_bytes > max_smem) plan.row_capacity = kAnyLength;
  if (plan.row_capacity == kAnyLength) {
    // Where fewer than three blocks fit, each of two blocks gets more warps.
    if (blocks_in_smem(all_keys_bytes, max_smem) < 3) plan.warps = fwd_max_warps(kAnyLength, head_dim);
    const int share = block_share_of_smem(fwd_blocks(kAnyLength, head_dim), max_smem);
    const bool has_room_for_two = fwd_smem_bytes(head_dim, kLoopSlabKeys, plan.warps) <= share;
    plan.key_rows = fwd_chunk_rows(num_keys, head_dim, plan.warps, has_room_for_two ? share : max_smem);
  }
  plan.warps = std::min(plan.warps, ceil_div(num_queries, plan.rows_per_warp));
  plan.smem_bytes = fwd_smem_bytes(head_dim, plan.key_rows, plan.warps);
  const int blocks = std::min(fwd_blocks(plan.row_capacity, head_dim), blocks_in_smem(plan.smem_bytes, max_smem));
  plan.query_splits = fwd_query_splits(plan, batch_heads, num_queries, multiprocessors * std::max(blocks, 1));
  plan.blocks = batch_heads * plan.query_splits;
  return plan;
}

struct ShortAttentionBwdPlan {
  bool wgmma;      // resident, and the block multiplies by warpgroups
  bool resident;   // K and V of a head stay on chip and the block walks its queries; otherwise both are streamed
  int warps;       // of a block
  int key_rows;    // keys in shared memory at a time
  int query_rows;  // queries in shared memory at a time; resident: queries of a slab
  int key_groups;  // resident: groups of 32 keys
  int parts;       // resident: parts of a slab, 32 queries each; a key group has a warp for each part
  int slabs;       // resident: slabs of queries that the block walks for every head
  int smem_bytes;  // if the GPU has less, no kernel takes the shape
};

// The kernel of sm_90a takes 193 to 208 keys, and as many queries, with D = 64. A product takes all of them.
constexpr int kBwdWgmmaWarps = 4 * kWarpgroupWarps;                  // for the scores, dv, dk, and copies
constexpr int kBwdWgmmaSlab = kWarpgroupRows;                        // queries
constexpr int kBwdWgmmaSlabs = ceil_div(kWgmmaKeys, kBwdWgmmaSlab);  // of a head
constexpr int kBwdWgmmaRows = 8 * kWgmmaKeys + 2 * kBwdWgmmaSlab;    // of shared memory: see BwdWgmmaMemory
constexpr int kBwdWgmmaStats = kBwdWgmmaSlabs * kBwdWgmmaSlab;       // queries of which there is room for lse and delta

// Returns false where that kernel does not take the shape.
inline bool plan_bwd_wgmma(ShortAttentionBwdPlan& plan, int num_queries, int num_keys, int head_dim, int max_smem) {
  const int key_rows = round_up(num_keys, kTileRows), query_rows = round_up(num_queries, kTileRows);
  if (head_dim != 64 || key_rows != kWgmmaKeys || query_rows != kWgmmaKeys) return false;
  plan.wgmma = plan.resident = true;
  plan.warps = kBwdWgmmaWarps;
  plan.key_rows = key_rows;
  plan.query_rows = kBwdWgmmaSlab;
  plan.key_groups = 1;
  plan.parts = 1;
  plan.slabs = kBwdWgmmaSlabs;
  plan.smem_bytes = smem_row_bytes(head_dim) * kBwdWgmmaRows + kBwdWgmmaStats * 2 * 4 + kWarpgroupWarps * head_dim * 4;
  return plan.smem_bytes <= max_smem;
}

constexpr int kBwdWarps = 4;                    // streamed
constexpr int kBwdRowsPerWarp = 2 * kTileRows;  // streamed: queries a warp owns for dq
// Streamed: keys a warp owns for dk and dv, two tiles where their accumulators fit in registers.
constexpr int bwd_keys_per_warp(int head_dim) { return (head_dim == 32 ? 2 : 1) * kTileRows; }

constexpr int kResidentWarps = 8;              // one block a multiprocessor, 255 registers a thread
constexpr int kResidentGroup = 2 * kTileRows;  // keys of a key warp, and queries of a part of a slab
constexpr int kResidentSlabs = 4;              // of queries in shared memory: at work, next, and two being copied
constexpr int kMaxParts = 3;
constexpr int kFewestKeyWarps = 5;  // with fewer at work, two blocks of the streamed kernel get more done

// Returns false where the keys need more warps or more shared memory than a block has, or give work to too few warps.
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
    // Tiles: K twice, V once, and q, dout and out of each slab. After them: ds, lse and delta of two slabs.
    const int tile_bytes = row_bytes * 3 * (key_rows + kResidentSlabs * query_rows);
    const int slab_bytes = 2 * query_rows * (2 * key_rows + 2 * 4);
    const int bias_bytes = has_bias ? 2 * kResidentWarps * 2 * head_dim * 4 : 0;
    const int scratch_bytes = (parts - 1) * groups * 2 * kResidentGroup * head_dim * 4;
    plan = {false,
            true,
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

inline ShortAttentionBwdPlan plan_streamed_bwd(int num_queries, int num_keys, int head_dim, bool has_bias) {
  const int row_bytes = smem_row_bytes(head_dim), keys_per_warp = bwd_keys_per_warp(head_dim);
  ShortAttentionBwdPlan plan{};
  plan.warps = kBwdWarps;
  plan.key_rows = kBwdWarps * keys_per_warp;
  plan.query_rows = kBwdWarps * kBwdRowsPerWarp;
  // Warps that share a group of keys add up its dk and dv in scratch. Only the last chunk can have so few groups.
  const int last_groups = ceil_div((num_keys - 1) % plan.key_rows + 1, keys_per_warp);
  const int scratch_bytes = 2 * last_groups <= kBwdWarps ? last_groups * keys_per_warp * head_dim * 4 : 0;
  const int stats_bytes = 2 * 4 * round_up(num_queries, plan.query_rows);
  const int bias_bytes = has_bias ? kBwdWarps * 3 * head_dim * 4 : 0;
  plan.smem_bytes = 2 * row_bytes * (plan.key_rows + plan.query_rows) + stats_bytes + bias_bytes + scratch_bytes;
  return plan;
}

inline ShortAttentionBwdPlan plan_short_attention_bwd(int num_queries, int num_keys, int head_dim, bool has_bias,
                                                      int max_smem, bool has_wgmma) {
  ShortAttentionBwdPlan plan{};
  if (has_wgmma && !is_switched_off("short_attention_bwd_wgmma") &&
      plan_bwd_wgmma(plan, num_queries, num_keys, head_dim, max_smem))
    return plan;
  plan = {};
  if (!is_switched_off("short_attention_bwd_resident") &&
      plan_resident_bwd(plan, num_queries, num_keys, head_dim, has_bias, max_smem))
    return plan;
  return plan_streamed_bwd(num_queries, num_keys, head_dim, has_bias);
}

// The least shared memory that a block must be able to have for a shape: enough for the forward loop with one slab of
// keys at a time, and for the streamed backward.
inline int short_attention_needed_smem(int num_queries, int num_keys, int head_dim) {
  const auto fwd = plan_short_attention_fwd(1, num_queries, num_keys, head_dim, 1, 0, false);
  const auto bwd = plan_streamed_bwd(num_queries, num_keys, head_dim, true);
  return std::max(fwd.smem_bytes, bwd.smem_bytes);
}

// The most shared memory that any shape needs, in bytes. More queries never need less, so trying the most suffices.
inline int short_attention_smem_for_every_shape() {
  int most = 0;
  for (const int head_dim : {32, 48, 64}) {
    for (int keys = 1; keys <= kMaxSequence; ++keys) {
      const int queries = keys <= kFewKeys ? kMaxQueriesFewKeys : kMaxSequence;
      most = std::max(most, short_attention_needed_smem(queries, keys, head_dim));
    }
  }
  return most;
}

}  // namespace lgfast
