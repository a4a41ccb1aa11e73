// The data of a block of the resident backward kernel, its walk over heads and slabs, and the copies of their rows.
#pragma once

#include "short_attention/gradients.cuh"

namespace lgfast {

template <typename T, int kHeadDim>
struct ShortAttentionBwdResidentTraits {
  using Element = T;
  using Tile = SmemTile<kHeadDim>;
  static constexpr int kD = kHeadDim;
  static constexpr int kWarps = kResidentWarps, kThreads = kWarps * kWarpSize;
};

using ScoreTile = SmemTile<kResidentGroup>;  // ds^T: its rows are keys, its columns the 32 queries of a part

// The position of a block in its heads. The block goes on for two slabs past its last head, to finish that head.
struct SlabPosition {
  int step;   // slabs before this one
  int slab;   // index of this one in its head
  int count;  // heads before this one
  Head head;
};

template <typename Traits>
struct ResidentBlock {
  using Tile = typename Traits::Tile;
  Tile first_tile;
  ScoreTile first_scores;
  QueryStats* first_stats;
  float* first_bias;  // nullptr without bias sums
  float* scratch;     // dk and dv of all parts but the first
  ShortAttentionBwdPlan plan;
  int heads;    // of an image
  Head stride;  // from one head of this block to its next
  int role;     // of this warp: a key warp's is part * key groups + key group; the query warps follow

  __device__ __forceinline__ Tile keys(int count) const { return first_tile.below(count % 2 * plan.key_rows); }
  __device__ __forceinline__ Tile values() const { return first_tile.below(2 * plan.key_rows); }
  __device__ __forceinline__ Tile queries(int step) const {
    return first_tile.below(3 * plan.key_rows + step % kResidentSlabs * 3 * plan.query_rows);
  }
  __device__ __forceinline__ Tile douts(int step) const { return queries(step).below(plan.query_rows); }
  __device__ __forceinline__ Tile outs(int step) const { return queries(step).below(2 * plan.query_rows); }
  __device__ __forceinline__ ScoreTile scores(int step, int part) const {
    return first_scores.below((step % 2 * plan.parts + part) * plan.key_rows);
  }
  __device__ __forceinline__ QueryStats* stats(int step) const { return first_stats + step % 2 * plan.query_rows; }
  // Returns the place of [D] sums. The sums of dq of a query warp are at `which` 0, those of dk and dv of a key warp at
  // 0 and 1. Where a key warp forms some of dq, its sums are at 1 of the only query warp, which has no use for that
  // place.
  __device__ __forceinline__ float* bias(int count, int role, int which) const {
    if (first_bias == nullptr) return nullptr;
    return first_bias + ((count % 2 * Traits::kWarps + role) * 2 + which) * Traits::kD;
  }
  __device__ __forceinline__ float* scratch_of(int part, int group) const {
    return scratch + ((part - 1) * plan.key_groups + group) * 2 * kResidentGroup * Traits::kD + lane_index();
  }
  __device__ __forceinline__ int key_warps() const { return plan.key_groups * plan.parts; }
  // Whether the last key warp forms half of dq. It does so if a single warp has no keys, for which the others would
  // wait, and if the last key warp has at most half the keys of the others.
  __device__ __forceinline__ bool splits_dq(int num_keys) const {
    return key_warps() == Traits::kWarps - 1 && plan.parts == 1 &&
           num_keys - (plan.key_groups - 1) * kResidentGroup <= kTileRows;
  }

  __device__ __forceinline__ Head after(Head head) const {
    const Head next{head.b + stride.b, head.h + stride.h};
    return next.h < heads ? next : Head{next.b + 1, next.h - heads};
  }
  __device__ __forceinline__ Head before(Head head) const {
    const Head last{head.b - stride.b, head.h - stride.h};
    return last.h >= 0 ? last : Head{last.b - 1, last.h + heads};
  }
};

// Warps 3 and 7 run on one quarter of a multiprocessor, and are the last to get keys. Of 13 tiles of keys one of them
// has one tile and the other none; forming dq of all queries is about the work that they lack.
__device__ __forceinline__ int resident_role(int key_warps) {
  const int warp = warp_index();
  if (key_warps <= 4 || warp < 3 || warp == 7) return warp;
  return warp == 3 ? 6 : warp - 1;
}

// Starts copying rows of a head, with two warps.
template <typename Traits>
__device__ __forceinline__ void start_copy(const ResidentBlock<Traits>& block, typename Traits::Tile tile,
                                           const HeadsInput& view, Head head, int first, int rows, int limit) {
  using T = typename Traits::Element;
  constexpr uint32_t kThreads = 2 * kWarpSize;
  const int thread = opaque(block.role * kWarpSize + lane_index()) % kThreads;
  load_rows_async(tile, head_rows<T>(view, head.b, head.h), view.token_stride, first, rows, limit, thread, kThreads);
}

template <typename Traits>
__device__ __forceinline__ void start_slab(const ResidentBlock<Traits>& block, const ShortAttentionBwdParams& params,
                                           int step, int slab, Head head) {
  const int which = block.role / 2, rows = block.plan.query_rows;
  if (which > 2 || head.b >= params.batch) return;
  const HeadsInput view = which == 0 ? params.q : which == 1 ? params.dout : params.out;
  start_copy(block, block.queries(step).below(which * rows), view, head, slab * rows, rows, params.num_queries);
}

template <typename Traits>
__device__ __forceinline__ void start_keys(const ResidentBlock<Traits>& block, const ShortAttentionBwdParams& params,
                                           int count, Head head) {
  if (head.b >= params.batch) return;
  const bool is_key = block.role < 4;
  const int rows = block.plan.key_rows / 2, first = block.role / 2 % 2 * rows;  // half of them
  const auto tile = is_key ? block.keys(count) : block.values();
  start_copy(block, tile.below(first), is_key ? params.k : params.v, head, first, rows, params.num_keys);
}

// Writes dbias of a head. All its sums must be there.
template <typename Traits>
__device__ __forceinline__ void write_bias(const ResidentBlock<Traits>& block, const ShortAttentionBwdParams& params,
                                           int count, Head head) {
  for (int i = thread_index(); i < 3 * Traits::kD; i += Traits::kThreads) {
    const int which = i / Traits::kD, column = i % Traits::kD;
    const int first = which == 0 ? block.key_warps() : 0, end = which == 0 ? Traits::kWarps : block.plan.key_groups;
    float sum = 0.0f;
#pragma unroll 1
    for (int role = first; role < end; ++role) sum += block.bias(count, role, which == 2)[column];
    if (which == 0 && block.splits_dq(params.num_keys)) sum += block.bias(count, Traits::kWarps - 1, 1)[column];
    params.dbias[((int64_t(head.b) * 3 + which) * params.heads + head.h) * Traits::kD + column] = sum;
  }
}

// Calls work(position, next head) for every slab of every head of this block, and for two slabs more.
template <typename Traits, typename Work>
__device__ __forceinline__ void for_each_slab(const ResidentBlock<Traits>& block, const ShortAttentionBwdParams& params,
                                              SlabPosition at, const Work& work) {
  constexpr int kAhead = kResidentSlabs - 1;
  const int slabs = block.plan.slabs;
  Head next = block.after(at.head);
  for (;; ++at.step) {
    cp_async_wait<1>();  // now this slab and the next have arrived
    sync_threads();
    const int ahead = at.slab + kAhead;
    start_slab(block, params, at.step + kAhead, ahead < slabs ? ahead : ahead - slabs, ahead < slabs ? at.head : next);
    if (at.slab == 1) start_keys(block, params, at.count + 1, next);
    cp_async_commit();
    work(at, next);
    if (at.slab == 1) {
      if (block.first_bias != nullptr && at.count > 0) write_bias(block, params, at.count - 1, block.before(at.head));
      if (at.head.b >= params.batch) return;
    }
    if (++at.slab == slabs) {
      at.slab = 0;
      ++at.count;
      at.head = next;
      next = block.after(next);
    }
  }
}

}  // namespace lgfast
