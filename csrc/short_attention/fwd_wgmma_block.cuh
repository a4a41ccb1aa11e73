// A block of forward by warpgroups: its shared memory, its barriers, and the heads that it takes.
#pragma once

#include "short_attention/tiles.cuh"

namespace lgfast {

template <typename T>
struct ShortAttentionFwdWgmmaTraits {
  using Element = T;
  static constexpr int kGroups = kWgmmaGroups, kThreads = kWgmmaWarps * kWarpSize;
  static constexpr int kBlocks = kWgmmaKeys / 2 / 8;     // of eight keys, in half the scores
  static constexpr int kSteps = kWgmmaKeys / kTileRows;  // of 16 keys in the products with v
  static constexpr int kFirstSteps = kBlocks / 2;        // that the first half of the scores covers
  static constexpr int kRegisters = 192, kLastRegisters = 80, kCopyRegisters = 48;  // of a thread; 128 of 512 threads
};

// The parts of a head, in the order in which they are copied.
enum FwdPart { kKeysPart, kQueriesPart, kValuesPart, kParts };

// The parts of one head after the other come to places of shared memory by turns. n is the number of a head in the
// block. A warp that copies tells three warpgroups that a part has arrived; each of their warps gives its place back,
// which the part comes to that is kWgmmaPlaces further on. Two barriers for each place count that.
struct FwdPlaces {
  static constexpr int kReaders = (kWgmmaGroups + 1) * kWarpgroupWarps;
  uint32_t first, barriers;

  __device__ __forceinline__ FwdPlaces()
      : first(smem_address(dynamic_smem())), barriers(first + kWgmmaSmemBytes - kWgmmaBarrierBytes) {}

  static __device__ __forceinline__ uint32_t turn(int n, FwdPart part) { return kParts * n + part; }
  __device__ __forceinline__ SmemTile<64> tile(int n, FwdPart part) const {
    return {first + turn(n, part) % kWgmmaPlaces * kWgmmaPlaceBytes};
  }
  __device__ __forceinline__ uint32_t arrival(uint32_t turn) const { return barriers + turn % kWgmmaPlaces * 8; }
  __device__ __forceinline__ uint32_t return_of(uint32_t turn) const { return arrival(turn) + 8 * kWgmmaPlaces; }

  // By one thread, before all others go on.
  __device__ __forceinline__ void begin() const {
    for (int place = 0; place < kWgmmaPlaces; ++place) {
      mbarrier_init(arrival(place), 1);
      mbarrier_init(return_of(place), kReaders);
    }
  }
  __device__ __forceinline__ void await(int n, FwdPart part) const {
    mbarrier_wait(arrival(turn(n, part)), turn(n, part) / kWgmmaPlaces % 2);
  }
  __device__ __forceinline__ void await_place(int n, FwdPart part) const {
    const uint32_t before = turn(n, part) - kWgmmaPlaces;
    if (int(before) >= 0) mbarrier_wait(return_of(before), before / kWgmmaPlaces % 2);
  }
  // By all lanes of the warp whose copies have arrived.
  __device__ __forceinline__ void hand_over(int n, FwdPart part) const {
    fence_async_proxy();
    sync_warp();
    if (lane_index() == 0) mbarrier_arrive(arrival(turn(n, part)));
  }
  // By all lanes of a warp that reads the part no more.
  __device__ __forceinline__ void give_back(int n, FwdPart part) const {
    if (lane_index() == 0) mbarrier_arrive(return_of(turn(n, part)));
  }

  // 1 KB for the results of a warp, eight rows at a time.
  __device__ __forceinline__ SmemTile<64> results(int group, int warp) const {
    const SmemTile<64> first_results{first + kWgmmaPlaces * kWgmmaPlaceBytes};
    return first_results.below((group * kWarpgroupWarps + warp) * 8);
  }
};

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

__device__ __forceinline__ FwdHeads own_heads(const ShortAttentionFwdParams& params) {
  return {params.heads, block_index(), grid_size()};
}
__device__ __forceinline__ int count_heads(const ShortAttentionFwdParams& params) {
  return ceil_div(params.batch * params.heads - block_index(), grid_size());
}

}  // namespace lgfast
