// What the warps that copy do in the backward kernel by warpgroups: they bring q, k, v, out, dout and lse to shared
// memory and take dq from there.
#pragma once

#include "short_attention/bwd_wgmma_block.cuh"

namespace lgfast {

// This thread's row of 16, and its chunk of 16 bytes of the row.
struct RowShare {
  int row, chunk;
  __device__ __forceinline__ RowShare() {
    const uint32_t thread = uint32_t(opaque(thread_index())) % BwdWgmmaBarriers::kGroupThreads;
    row = thread / 8;
    chunk = thread % 8;
  }
};

// Starts copying rows of a head from `first` on with a warpgroup. Rows from `limit` on become zeros.
template <typename T>
__device__ __forceinline__ void start_rows(SmemTile<64> tile, const HeadsInput& view, Head head, int first, int rows,
                                           int limit) {
  const RowShare own;
  const T* from = head_rows<T>(view, head.b, head.h) + (first + own.row) * view.token_stride + 8 * own.chunk;
  const uint32_t to = tile.at(own.row, own.chunk);
  limit -= first + own.row;
#pragma unroll 3
  for (int i = 0; i < rows; i += kTileRows) {
    cp_async_16(to + i * tile.kRowBytes, from, i < limit);
    from += kTileRows * view.token_stride;
  }
}

// Stores the first kRows rows of a tile as rows of a head from `first` on, up to `limit`, with a warpgroup.
template <typename T, int kRows>
__device__ __forceinline__ void store_tile(SmemTile<64> tile, const HeadsOutput& view, Head head, int first,
                                           int limit) {
  const RowShare own;
  T* to = head_rows<T>(view, head.b, head.h) + (first + own.row) * view.token_stride + 8 * own.chunk;
  const unsigned char* from = dynamic_smem() + (tile.at(own.row, own.chunk) - smem_address(dynamic_smem()));
#pragma unroll
  for (int i = 0; i < kRows; i += kTileRows) {
    const Vector16 words = *reinterpret_cast<const Vector16*>(from + i * tile.kRowBytes);
    if (first + own.row + i < limit) *reinterpret_cast<Vector16*>(to) = words;
    to += kTileRows * view.token_stride;
  }
}

// Returns the scalar product of eight values of each.
template <typename T>
__device__ __forceinline__ float multiply_chunks(const Vector16& x, const Vector16& y) {
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    sum += unpack_low<T>(x.words[i]) * unpack_low<T>(y.words[i]);
    sum += unpack_high<T>(x.words[i]) * unpack_high<T>(y.words[i]);
  }
  return sum;
}

template <typename Traits>
struct BwdWgmmaCopies {
  using T = typename Traits::Element;
  static constexpr int kRows = Traits::kSlab;
  const ShortAttentionBwdParams& params;
  BwdWgmmaMemory at;
  // Of the slab after the one at hand: this thread's chunks of out, and its query's lse.
  Vector16 out[Traits::kSteps];
  float lse;

  __device__ __forceinline__ void start_slab(Head head, int slab, int step) const {
    start_rows<T>(at.queries(step), params.q, head, slab * kRows, kRows, params.num_queries);
    start_rows<T>(at.douts(step), params.dout, head, slab * kRows, kRows, params.num_queries);
  }

  // The first or the second half of K and V.
  __device__ __forceinline__ void start_keys(Head head, int count, int half) const {
    constexpr int kHalf = 7 * kTileRows;
    const int first = half * kHalf, rows = half == 0 ? kHalf : kWgmmaKeys - kHalf;
    start_rows<T>(at.keys(count).below(first), params.k, head, first, rows, params.num_keys);
    start_rows<T>(at.values(count).below(first), params.v, head, first, rows, params.num_keys);
  }

  // Reads what the statistics of a slab need. Queries that do not exist have an infinite lse.
  __device__ __forceinline__ void fetch(Head head, int slab, bool exists) {
    const RowShare own;
    const int first = slab * kRows, limit = exists ? params.num_queries - first : 0;
    const T* from =
        head_rows<T>(params.out, head.b, head.h) + (first + own.row) * params.out.token_stride + 8 * own.chunk;
#pragma unroll
    for (int i = 0; i < Traits::kSteps; ++i) {
      out[i] = {};
      if (own.row + i * kTileRows < limit) out[i] = *reinterpret_cast<const Vector16*>(from);
      from += kTileRows * params.out.token_stride;
    }
    const int row = 8 * own.row + own.chunk;
    lse = -negative_infinity();
    if (row < smaller(kRows, limit))
      lse = params.lse[(int64_t(head.b) * params.heads + head.h) * params.num_queries + first + row];
  }

  // Writes the statistics of a slab, for which fetch() was called last. A thread reads the chunks of dout that it
  // copied.
  __device__ __forceinline__ void write_stats(int step) const {
    const RowShare own;
    QueryStats* stats = at.stats(step);
    const uint32_t place = at.douts(step).at(own.row, own.chunk) - smem_address(dynamic_smem());
#pragma unroll
    for (int i = 0; i < Traits::kSteps; ++i) {
      const unsigned char* dout = dynamic_smem() + place + i * kTileRows * SmemTile<64>::kRowBytes;
      float delta = multiply_chunks<T>(out[i], *reinterpret_cast<const Vector16*>(dout));
#pragma unroll
      for (int mask = 1; mask < 8; mask *= 2) delta += shfl_xor(delta, mask);
      if (own.chunk == 0) stats[own.row + i * kTileRows].delta = delta;
    }
    const int row = 8 * own.row + own.chunk;
    if (row < kRows) stats[row].lse_log2 = lse * kLog2E;
  }

  // Stores what was staged. A thread reads where it will copy to next.
  __device__ __forceinline__ void store(Head head, int slab, int step) const {
    store_tile<T, kRows>(at.staged(step), params.dq, head, slab * kRows, params.num_queries);
    if (slab != Traits::kSlabs - 1) return;
    const auto dk = at.staged_last(step), dv = dk.below(kTileRows);
    store_tile<T, kTileRows>(dk, params.dk, head, Traits::kLastKeys, params.num_keys);
    store_tile<T, kTileRows>(dv, params.dv, head, Traits::kLastKeys, params.num_keys);
  }
};

// Copies every head, and stores its dq.
template <typename Traits>
__device__ __forceinline__ void copy_heads(const ShortAttentionBwdParams& params) {
  using Barriers = BwdWgmmaBarriers;
  BwdWgmmaCopies<Traits> work{params, {}, {}, 0.0f};
  BwdWgmmaSlabs<Traits> at(params);
#pragma unroll 1
  for (int half = 0; half < 2; ++half) work.start_keys(at.head, 0, half);
#pragma unroll 1
  for (int slab = 0; slab < 2; ++slab) {
    work.start_slab(at.head, slab, slab);
    cp_async_commit();
  }
  work.fetch(at.head, 0, true);
#pragma unroll 1
  for (;; at.advance()) {
    if (at.exists()) {
      cp_async_wait<1>();
      work.write_stats(at.step);
      work.fetch(at.head_of(1), at.slab_of(1), at.exists(1));
      fence_async_proxy();
      hand_over<Traits>(at.step);
    }
    barrier_sync(Barriers::kStaged, Barriers::kStagedThreads);
    if (at.step >= 2) work.store(at.head_of(-2), at.slab_of(-2), at.step - 2);
    if (!at.exists() && at.slab == 1) break;
    if (at.exists(2)) work.start_slab(at.head_of(2), at.slab_of(2), at.step + 2);
    // ds of the first slab is there: the warpgroups of the keys have stored the head before by way of its V. The first
    // slab of the next head goes with the second half.
    if ((at.slab == 2 || at.slab == 3) && at.has_next()) work.start_keys(at.next, at.count + 1, at.slab - 2);
    cp_async_commit();
  }
}

}  // namespace lgfast
