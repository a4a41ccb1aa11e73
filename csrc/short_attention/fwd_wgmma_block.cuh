// A block of forward by warpgroups: its shared memory, its barriers, and the heads that it takes.
#pragma once

#include "short_attention/tiles.cuh"

namespace lgfast {

template <typename T>
struct ShortAttentionFwdWgmmaTraits {
  using Element = T;
  static constexpr int kGroups = kWgmmaGroups, kStages = kWgmmaStages, kThreads = kWgmmaWarps * kWarpSize;
  static constexpr int kBlocks = kWgmmaKeys / 2 / 8;     // of eight keys, in half the scores
  static constexpr int kSteps = kWgmmaKeys / kTileRows;  // of 16 keys in the products with v
  static constexpr int kFirstSteps = kBlocks / 2;        // that the first half of the scores covers
  static constexpr int kRegisters = 192, kLastRegisters = 80, kCopyRegisters = 48;  // of a thread; 128 of 512 threads
};

// Barriers of the hardware. A stage has two parts, q with k, and v, which arrive and are given back one after the
// other. Three warpgroups read them: two that take tiles, and that of the last queries, which waits for both at once.
struct FwdWgmmaBarriers {
  static constexpr int kGroupThreads = kWarpgroupWarps * kWarpSize;
  static constexpr int kEmptyThreads = (kWgmmaGroups + 1) * kGroupThreads + kWarpSize;  // users, the warp that copies
  static constexpr int kFullThreads = kGroupThreads + kWarpSize, kFullLastThreads = kGroupThreads + 2 * kWarpSize;
  static constexpr int kFullLast = 2 * kWgmmaStages * kWgmmaGroups, kEmpty = kFullLast + kWgmmaStages;
  static constexpr int kAmongLast = kEmpty + 2 * kWgmmaStages;  // of the warpgroup of the last queries
  static __device__ __forceinline__ int full(int stage, bool is_v, int group) {
    return (2 * stage + is_v) * kWgmmaGroups + group;
  }
  static __device__ __forceinline__ int full_last(int stage) { return kFullLast + stage; }
  static __device__ __forceinline__ int empty(int stage, bool is_v) { return kEmpty + 2 * stage + is_v; }
};

// Comes to a barrier if `comes`. The compiler would move the arrival behind the arithmetic that follows, but not a
// loop.
__device__ __forceinline__ void arrive_here(bool comes, int barrier, int threads) {
#pragma unroll 1
  for (int left = opaque(comes); left > 0; --left) barrier_arrive(barrier, threads);
}

struct FwdWgmmaStage {
  SmemTile<64> queries, keys, values;
};

__device__ __forceinline__ FwdWgmmaStage stage_tiles(int stage) {
  const SmemTile<64> first{smem_address(dynamic_smem()) + stage * kWgmmaStageBytes};
  return {first.below(2 * kWgmmaKeys), first, first.below(kWgmmaKeys)};
}

// 2 KB for the results of a warp's 16 queries.
__device__ __forceinline__ SmemTile<64> store_tile(int group, int warp) {
  const SmemTile<64> first{smem_address(dynamic_smem()) + kWgmmaStages * kWgmmaStageBytes};
  return first.below((group * kWarpgroupWarps + warp) * kTileRows);
}

// The heads of a block, one after the other: b is params.batch or more after the last.
struct FwdHeads {
  int b, h, step_b, step_h, heads;

  __device__ __forceinline__ FwdHeads(int heads, int first, int step)
      : b(first / heads), h(first % heads), step_b(step / heads), step_h(step % heads), heads(heads) {}
  __device__ __forceinline__ void advance() {
    b += step_b;
    h += step_h;
    if (h >= heads) {
      h -= heads;
      ++b;
    }
  }
};

template <typename Traits>
__device__ __forceinline__ FwdHeads heads_of_stage(const ShortAttentionFwdParams& params, int stage) {
  return {params.heads, block_index() + stage * grid_size(), Traits::kStages * grid_size()};
}

}  // namespace lgfast
