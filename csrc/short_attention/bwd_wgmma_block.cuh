// The shared memory and the barriers of a block of the backward kernel by warpgroups.
#pragma once

#include "short_attention/gradients.cuh"

namespace lgfast {

template <typename T>
struct ShortAttentionBwdWgmmaTraits {
  using Element = T;
  static constexpr int kD = 64, kThreads = kBwdWgmmaWarps * kWarpSize;
  static constexpr int kSlab = kBwdWgmmaSlab, kSlabs = kBwdWgmmaSlabs;
  // The keys of a head in two parts, in blocks of eight: what a product over the queries or D takes at once.
  static constexpr int kFirstBlocks = 14, kSecondBlocks = kWgmmaKeys / 8 - kFirstBlocks;
  // Of a thread. A block of 512 threads begins with 128 each.
  static constexpr int kQueryRegisters = 200, kKeyRegisters = 136, kCopyRegisters = 40;
};

// Barriers of the hardware. `step` counts the slabs of a block, `part` is that of the keys.
struct BwdWgmmaBarriers {
  static constexpr int kGroupThreads = kWarpgroupWarps * kWarpSize;
  // A slab and its statistics may be read. The warps that copy come here for the third slab before any is done.
  static constexpr int kFullThreads = 2 * kGroupThreads;
  static __device__ __forceinline__ int full(int step) { return 1 + step % 4; }
  // p^T and ds^T of a part are there; they may be written again.
  static constexpr int kScoresThreads = 3 * kGroupThreads;
  static __device__ __forceinline__ int ready(int part) { return 5 + part; }
  static __device__ __forceinline__ int free(int part) { return 7 + part; }
  // Nobody reads a slab any more, and its dq is staged. The others may come here for the next slab before the warps
  // that copy come.
  static constexpr int kDoneThreads = 4 * kGroupThreads;
  static __device__ __forceinline__ int done(int step) { return 9 + step % 4; }
  // The sums of ds for the bias are there, and those of the warps that form dv.
  static constexpr int kKeySums = 13, kKeySumsThreads = 2 * kGroupThreads, kWarpSums = 14;
};

// The head of an index in [0, B H).
__device__ __forceinline__ Head head_at(int index, int heads) { return {index / heads, index % heads}; }

// How many queries of a slab there may be.
template <typename Traits>
__device__ __forceinline__ int slab_rows(int slab) {
  return slab == Traits::kSlabs - 1 ? kWgmmaKeys % Traits::kSlab : Traits::kSlab;
}

// A product takes 64 queries, so with the last slab of a head it reads 48 rows more. Behind those of q come those of
// dout, and behind both what nobody writes at that time: dq of the slab before last.
struct BwdWgmmaMemory {
  using Tile = SmemTile<64>;
  static constexpr int kWholeSlabs = (kBwdWgmmaSlabs - 1) * kBwdWgmmaSlab, kLastRows = kWgmmaKeys - kWholeSlabs;
  static constexpr int kQueryRows = 6 * kWgmmaKeys, kLastSlabRows = kQueryRows + 2 * kWholeSlabs;
  Tile first;

  __device__ __forceinline__ BwdWgmmaMemory() : first{smem_address(dynamic_smem())} {}
  // p^T and ds^T: rows are keys, columns the queries of a slab.
  __device__ __forceinline__ Tile p() const { return first; }
  __device__ __forceinline__ Tile ds() const { return first.below(kWgmmaKeys); }
  // `count` counts the heads of a block.
  __device__ __forceinline__ Tile keys(int count) const { return first.below((2 + count % 2) * kWgmmaKeys); }
  __device__ __forceinline__ Tile values(int count) const { return first.below((4 + count % 2) * kWgmmaKeys); }
  __device__ __forceinline__ Tile queries(int slab) const {
    return first.below(slab < kBwdWgmmaSlabs - 1 ? kQueryRows + slab * kBwdWgmmaSlab : kLastSlabRows);
  }
  __device__ __forceinline__ Tile douts(int slab) const {
    return queries(slab).below(slab < kBwdWgmmaSlabs - 1 ? kWholeSlabs : kLastRows);
  }
  // dq of a slab on its way to memory.
  __device__ __forceinline__ Tile staged(int step) const {
    return first.below(kLastSlabRows + 2 * kLastRows + (step + 1) % 2 * kBwdWgmmaSlab);
  }
  __device__ __forceinline__ QueryStats* stats(int slab) const {
    return reinterpret_cast<QueryStats*>(dynamic_smem() + kBwdWgmmaRows * Tile::kRowBytes) + slab * kBwdWgmmaSlab;
  }
  // Where the values of a head were: dv and dk on their way to memory, 96 rows each, and two sums for each key.
  __device__ __forceinline__ Tile dv_rows(int step) const { return values(step / kBwdWgmmaSlabs); }
  __device__ __forceinline__ Tile dk_rows(int step) const { return values(step / kBwdWgmmaSlabs).below(96); }
  __device__ __forceinline__ float* key_sums(int step, bool second) const {
    return floats(dk_rows(step).below(96)) + (second ? kWgmmaKeys : 0);
  }
  // [warps][D] sums for the bias.
  __device__ __forceinline__ float* warp_sums() const { return reinterpret_cast<float*>(stats(kBwdWgmmaSlabs)); }
  __device__ __forceinline__ float* floats(Tile tile) const {
    return reinterpret_cast<float*>(dynamic_smem() + (tile.address - smem_address(dynamic_smem())));
  }
};

// The index of the head that a slab of the block belongs to: B H or more behind the last.
template <typename Traits>
__device__ __forceinline__ int head_index(int step) {
  return block_index() + uint32_t(step) / Traits::kSlabs * grid_size();
}
template <typename Traits>
__device__ __forceinline__ bool exists(int step, const ShortAttentionBwdParams& params) {
  return head_index<Traits>(step) < params.batch * params.heads;
}

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
  __device__ __forceinline__ int slab_of(int ahead) const { return uint32_t(slab + ahead) % kSlabs; }
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

// Where the sums over tokens of a head's dq, dk or dv (0, 1, 2) go.
__device__ __forceinline__ float* bias_of(const ShortAttentionBwdParams& params, Head head, int which) {
  return params.dbias + ((int64_t(head.b) * 3 + which) * params.heads + head.h) * 64;
}

}  // namespace lgfast
