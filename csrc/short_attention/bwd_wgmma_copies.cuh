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
#pragma unroll 4
  for (int i = 0; i < rows; i += kTileRows) {
    cp_async_16(to + i * tile.kRowBytes, from, i < limit);
    from += kTileRows * view.token_stride;
  }
}

// Stores the first `rows` rows of a tile as rows of a head from `first` on, up to `limit`, with a warpgroup.
template <typename T>
__device__ __forceinline__ void store_tile(SmemTile<64> tile, const HeadsOutput& view, Head head, int first, int rows,
                                           int limit) {
  const RowShare own;
  T* to = head_rows<T>(view, head.b, head.h) + (first + own.row) * view.token_stride + 8 * own.chunk;
  const unsigned char* from = dynamic_smem() + (tile.at(own.row, own.chunk) - smem_address(dynamic_smem()));
  limit = smaller(limit - first, rows) - own.row;
#pragma unroll
  for (int i = 0; i < kBwdWgmmaSlab; i += kTileRows) {
    if (i < limit) *reinterpret_cast<Vector16*>(to) = *reinterpret_cast<const Vector16*>(from + i * tile.kRowBytes);
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
  static constexpr int kRows = Traits::kSlab, kSteps = Traits::kSlab / kTileRows;
  const ShortAttentionBwdParams& params;
  BwdWgmmaMemory at;
  // Of the slab after the one at hand: this thread's chunks of out, and its query's lse.
  Vector16 out[kSteps];
  float lse;

  __device__ __forceinline__ void start_slab(Head head, int slab) const {
    const int rows = slab_rows<Traits>(slab);
    start_rows<T>(at.queries(slab), params.q, head, slab * kRows, rows, params.num_queries);
    start_rows<T>(at.douts(slab), params.dout, head, slab * kRows, rows, params.num_queries);
  }

  __device__ __forceinline__ void start_keys(Head head, int count) const {
    start_rows<T>(at.keys(count), params.k, head, 0, kWgmmaKeys, params.num_keys);
  }
  __device__ __forceinline__ void start_values(Head head, int count) const {
    start_rows<T>(at.values(count), params.v, head, 0, kWgmmaKeys, params.num_keys);
  }

  // Reads what the statistics of a slab need. Queries that do not exist have an infinite lse.
  __device__ __forceinline__ void fetch(Head head, int slab, bool exists) {
    const RowShare own;
    const int first = slab * kRows, limit = exists ? params.num_queries - first : 0;
    const T* from =
        head_rows<T>(params.out, head.b, head.h) + (first + own.row) * params.out.token_stride + 8 * own.chunk;
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
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
  __device__ __forceinline__ void write_stats(int slab) const {
    const RowShare own;
    QueryStats* stats = at.stats(slab);
    const int rows = slab_rows<Traits>(slab);
    const uint32_t place = at.douts(slab).at(own.row, own.chunk) - smem_address(dynamic_smem());
    float deltas[kSteps];
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      const unsigned char* dout = dynamic_smem() + place + i * kTileRows * SmemTile<64>::kRowBytes;
      deltas[i] = multiply_chunks<T>(out[i], *reinterpret_cast<const Vector16*>(dout));
    }
#pragma unroll
    for (int mask = 1; mask < 8; mask *= 2) {
#pragma unroll
      for (float& delta : deltas) delta += shfl_xor(delta, mask);
    }
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      if (own.chunk == 0 && i * kTileRows < rows) stats[own.row + i * kTileRows].delta = deltas[i];
    }
    const int row = 8 * own.row + own.chunk;
    if (row < rows) stats[row].lse_log2 = lse * kLog2E;
  }

  // Stores dq of a slab.
  __device__ __forceinline__ void store(Head head, int slab, int step) const {
    store_tile<T>(at.staged(step), params.dq, head, slab * kRows, slab_rows<Traits>(slab), params.num_queries);
  }
};

// Copies every head, and stores its dq. Slabs are copied two ahead, to where those of two before were.
template <typename Traits>
__device__ __forceinline__ void copy_heads(const ShortAttentionBwdParams& params) {
  using Barriers = BwdWgmmaBarriers;
  BwdWgmmaCopies<Traits> work{params, {}, {}, 0.0f};
  BwdWgmmaSlabs<Traits> at(params);
  work.start_keys(at.head, 0);
  work.start_values(at.head, 0);
#pragma unroll 1
  for (int slab = 0; slab < 2; ++slab) {
    work.start_slab(at.head, slab);
    cp_async_commit();
  }
  work.fetch(at.head, 0, true);
#pragma unroll 1
  for (;; at.advance()) {
    if (at.exists()) {
      cp_async_wait<1>();
      work.write_stats(at.slab);
      fence_async_proxy();
    }
    const bool is_end = !at.exists() && at.slab == 1;
    if (!is_end) barrier_arrive(Barriers::full(at.step), Barriers::kFullThreads);
    work.fetch(at.head_of(1), at.slab_of(1), at.exists(1));
    if (at.step >= 2) barrier_sync(Barriers::done(at.step - 2), Barriers::kDoneThreads);
    // The first slab of a head is done, and so is the head before with its keys and values. The values are a group of
    // their own: the next head's first slab waits for them, and not for the second.
    if (at.slab == 2 && at.has_next()) work.start_keys(at.next, at.count + 1);
    if (at.slab == 3 && at.has_next()) {
      work.start_values(at.next, at.count + 1);
      cp_async_commit();
    }
    if (at.exists(2)) work.start_slab(at.head_of(2), at.slab_of(2));
    cp_async_commit();
    if (at.step >= 2) work.store(at.head_of(-2), at.slab_of(-2), at.step - 2);
    if (is_end) break;
  }
}

}  // namespace lgfast
