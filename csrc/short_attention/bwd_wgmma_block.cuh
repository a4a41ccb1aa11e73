// The shared memory and the barriers of a block of the backward kernel by warpgroups.
#pragma once

#include "short_attention/gradients.cuh"

namespace lgfast {

template <typename T>
struct ShortAttentionBwdWgmmaTraits {
  using Element = T;
  static constexpr int kD = 64, kSums = kBwdWgmmaSums;
  static constexpr int kGroups = kBwdWgmmaGroups, kThreads = kBwdWgmmaWarps * kWarpSize;
  static constexpr int kSlab = kBwdWgmmaSlab, kSlabs = kBwdWgmmaSlabs, kStages = kBwdWgmmaStages;
  static constexpr int kBlocks = kSlab / 8, kSteps = kSlab / kTileRows;  // of queries, in a product
  static constexpr int kLastKeys = kGroups * kWarpgroupRows;             // the first of the last keys, up to 16
  // Of a thread. A block of 640 threads begins with 96 each, and has no others to give away.
  static constexpr int kKeyRegisters = 120, kQueryRegisters = 80, kCopyRegisters = 40;
};

// Barriers of the hardware. `step` counts the slabs of a block.
struct BwdWgmmaBarriers {
  static constexpr int kGroupThreads = kWarpgroupWarps * kWarpSize;
  // A slab has arrived, and dq of two slabs before is staged. Both warpgroups without keys meet here.
  static constexpr int kStaged = 1, kStagedThreads = 2 * kGroupThreads;
  // The sums of the last head are there. kSums is the barrier of sync_threads(), which the kernel does not use.
  static constexpr int kSums = 0;
  // ds of a slab is there, and nobody reads the slab before.
  static constexpr int kScoresThreads = (kBwdWgmmaGroups + 1) * kGroupThreads;
  static __device__ __forceinline__ int scores(int step) { return 2 + step % 2; }
  // A slab and its statistics may be read, and ds may be written. The warps that copy may come here while a warpgroup
  // of the keys is at the slab of three before.
  static constexpr int kFullThreads = 3 * kGroupThreads;
  static __device__ __forceinline__ int full(int step, int group) { return 4 + step % 4 * kBwdWgmmaGroups + group; }
};

// Hands a slab over to the warpgroups of the keys; both others do so.
template <typename Traits>
__device__ __forceinline__ void hand_over(int step) {
#pragma unroll
  for (int group = 0; group < Traits::kGroups; ++group)
    barrier_arrive(BwdWgmmaBarriers::full(step, group), BwdWgmmaBarriers::kFullThreads);
}

// The head of an index in [0, B H).
__device__ __forceinline__ Head head_at(int index, int heads) { return {index / heads, index % heads}; }

// `count` counts the heads of a block.
struct BwdWgmmaMemory {
  using Tile = SmemTile<64>;
  static constexpr int kSlabRows = 6 * kWgmmaKeys;
  Tile first;

  __device__ __forceinline__ BwdWgmmaMemory() : first{smem_address(dynamic_smem())} {}
  __device__ __forceinline__ Tile keys(int count) const { return first.below(count % 2 * kWgmmaKeys); }
  __device__ __forceinline__ Tile values(int count) const { return first.below((2 + count % 2) * kWgmmaKeys); }
  // ds^T: its rows are keys, its columns the queries of a slab. From chunk kLastChunk on, which it does not need, the
  // first rows hold p^T of the last keys: 16 rows for each 16 queries.
  static constexpr int kLastChunk = kBwdWgmmaSlab / 8;
  __device__ __forceinline__ Tile scores(int step) const { return first.below((4 + step % 2) * kWgmmaKeys); }
  __device__ __forceinline__ Tile queries(int step) const {
    return first.below(kSlabRows + step % kBwdWgmmaStages * kBwdWgmmaSlab);
  }
  __device__ __forceinline__ Tile douts(int step) const { return queries(step).below(kBwdWgmmaStages * kBwdWgmmaSlab); }
  // dq of a slab, where four slabs later q will be; and dk and dv of the last keys, where dout will be.
  __device__ __forceinline__ Tile staged(int step) const { return queries(step + 4); }
  __device__ __forceinline__ Tile staged_last(int step) const { return douts(step + 4); }
  __device__ __forceinline__ QueryStats* stats(int step) const {
    return reinterpret_cast<QueryStats*>(dynamic_smem() + kBwdWgmmaRows * Tile::kRowBytes) +
           step % kBwdWgmmaStages * kBwdWgmmaSlab;
  }
  // [kBwdWgmmaSums][dk, dv][D] sums over keys.
  __device__ __forceinline__ float* sums(int index) const {
    return reinterpret_cast<float*>(stats(0) + kBwdWgmmaStages * kBwdWgmmaSlab) + index * 2 * 64;
  }
};

// The walk of a block over the slabs of its heads, and two slabs past the last.
template <typename Traits>
struct BwdWgmmaSlabs {
  static constexpr int kSlabs = Traits::kSlabs;
  int heads, index, of_image;
  int step = 0, slab = 0, count = 0;  // slabs and heads before, and the index of the slab in its head
  Head before{}, head, next;

  __device__ __forceinline__ BwdWgmmaSlabs(const ShortAttentionBwdParams& params)
      : heads(params.batch * params.heads),
        index(block_index()),
        of_image(params.heads),
        head(head_at(index, of_image)),
        next(head_at(index + grid_size(), of_image)) {}
  // Of the slab `ahead` of this one, -2 to 2.
  __device__ __forceinline__ Head head_of(int ahead) const {
    return slab + ahead < 0 ? before : slab + ahead < kSlabs ? head : next;
  }
  __device__ __forceinline__ int slab_of(int ahead) const {
    return slab + ahead < 0 ? slab + ahead + kSlabs : slab + ahead < kSlabs ? slab + ahead : slab + ahead - kSlabs;
  }
  __device__ __forceinline__ bool exists(int ahead = 0) const {
    return slab + ahead < kSlabs ? index < heads : has_next();
  }
  __device__ __forceinline__ bool has_next() const { return index + grid_size() < heads; }
  __device__ __forceinline__ void advance() {
    ++step;
    if (++slab < kSlabs) return;
    slab = 0;
    ++count;
    index += grid_size();
    before = head;
    head = next;
    next = head_at(index + grid_size(), of_image);
  }
};

}  // namespace lgfast
