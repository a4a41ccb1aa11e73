// What the resident backward kernel forms for the queries of a slab: lse, delta and dq.
#pragma once

#include "short_attention/resident_block.cuh"

namespace lgfast {

// The operands of a product of dq over 16 keys: ds^T of kTiles x 16 queries, transposed, and all of k.
template <int kD, int kTiles>
struct DqFragments {
  uint32_t ds[kTiles][4], k[kD / 16][4];

  __device__ __forceinline__ void load(uint32_t scores, uint32_t keys, int key) {
#pragma unroll
    for (int r = 0; r < kTiles; ++r) ldmatrix_x4_trans(ds[r], (scores ^ (32 * r)) + key * ScoreTile::kRowBytes);
#pragma unroll
    for (int j = 0; j < kD / 16; ++j) {
      ldmatrix_x4_trans(k[j], SmemTile<kD>::advance(keys, 2 * j) + key * SmemTile<kD>::kRowBytes);
    }
  }
  template <typename T>
  __device__ __forceinline__ void multiply(float (&dq)[kTiles][kD / 8][4]) const {
#pragma unroll
    for (int j = 0; j < kD / 16; ++j) {
#pragma unroll
      for (int r = 0; r < kTiles; ++r) {
        mma_m16n8k16<T>(dq[r][2 * j], ds[r], k[j][0], k[j][1]);
        mma_m16n8k16<T>(dq[r][2 * j + 1], ds[r], k[j][2], k[j][3]);
      }
    }
  }
  // Clears ds of keys that do not exist, which may be anything. `left` of the 16 keys exist.
  __device__ __forceinline__ void clear(int left) {
#pragma unroll
    for (int i = 0; i < kTiles * 4; ++i) {
      const int own = left - 8 * (i % 4 / 2) - 2 * (fresh_lane() % 4);
      ds[i / 4][i % 4] &= own >= 2 ? 0xffffffffu : own == 1 ? 0xffffu : 0u;
    }
  }
};

// Forms dq of kTiles x 16 queries. Reads their ds^T from chunk `chunk` on. Loads the operands of the next 16 keys while
// it multiplies those of the present ones.
template <typename T, int kD, int kTiles>
__device__ __forceinline__ void form_dq(float (&dq)[kTiles][kD / 8][4], ScoreTile scores, int chunk, SmemTile<kD> keys,
                                        int num_keys) {
  const int lane = fresh_lane();
  const uint32_t from_scores = scores.at(lane % 8 + 8 * (lane / 16), chunk + lane / 8 % 2);
  const uint32_t from_keys = keys.at(lane % 16, lane / 16);
  DqFragments<kD, kTiles> now, next;
  now.load(from_scores, from_keys, 0);
  int key = kTileRows;
#pragma unroll 2
  for (; key < num_keys; key += kTileRows) {
    next.load(from_scores, from_keys, key);
    now.template multiply<T>(dq);
    now = next;
  }
  now.clear(num_keys - key + kTileRows);
  now.template multiply<T>(dq);
}

// Writes lse and delta of the queries of a slab; the warps that do so take turns. delta is the diagonal of out dout^T.
// lse is read from global memory one slab before it is written.
template <typename Traits>
struct StatsWriter {
  static constexpr int kD = Traits::kD;
  static constexpr int kMostParts = 2;  // parts that a warp takes; slabs of three parts have two such warps
  using T = typename Traits::Element;
  const ResidentBlock<Traits>& block;
  const ShortAttentionBwdParams& params;
  int index, warps;       // this warp's among those that write; their number
  float lse[kMostParts];  // of this lane's query of each part

  __device__ __forceinline__ void fetch(int slab, Head head) {
    const int first = slab * block.plan.query_rows;
    const float* from = params.lse + (int64_t(head.b) * params.heads + head.h) * params.num_queries;
#pragma unroll
    for (int i = 0; i < kMostParts; ++i) {
      const int part = index + i * warps, query = first + part * kResidentGroup + fresh_lane();
      lse[i] = -negative_infinity();
      if (part < block.plan.parts && query < params.num_queries && head.b < params.batch) lse[i] = from[query];
    }
  }

  // Writes the statistics of the slab that was fetched last, then fetches `slab` of `head`.
  __device__ __forceinline__ void write(int step, int slab, Head head) {
    QueryStats* stats = block.stats(step);
#pragma unroll
    for (int i = 0; i < kMostParts; ++i) {
      const int part = index + i * warps;
      if (part < block.plan.parts) stats[part * kResidentGroup + fresh_lane()].lse_log2 = lse[i] * kLog2E;
    }
    fetch(slab, head);
    const int tiles = block.plan.query_rows / kTileRows;
#pragma unroll 1
    for (int t = index; t < tiles; t += 2 * warps) {
      if (t + warps < tiles) {
        write_delta<2>(step, t * kTileRows);
      } else {
        write_delta<1>(step, t * kTileRows);
      }
    }
  }

  // Writes delta of kTiles tiles together, since each product of a tile waits for the one before.
  template <int kTiles>
  __device__ __forceinline__ void write_delta(int step, int row) {
    const int stride = warps * kTileRows;
    float product[kTiles][1][2][4] = {};
#pragma unroll
    for (int k = 0; k < kD / 16; ++k) {
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        uint32_t a[1][4];
        load_a_step(a, block.outs(step).below(row + t * stride), k);
        multiply_abt_step<T>(product[t], a, block.douts(step).below(row + t * stride), k);
      }
    }
    if (fresh_lane() % 4 != fresh_lane() / 8) return;  // the lane holds nothing of the diagonal
    QueryStats* stats = block.stats(step) + row + fresh_lane() / 4;
#pragma unroll
    for (int i = 0; i < 2 * kTiles; ++i) {
      const float* two = &product[i / 2][0][i % 2][2 * (i % 2)];
      stats[i / 2 * stride + 8 * (i % 2)].delta = fresh_lane() / 4 % 2 == 0 ? two[0] : two[1];
    }
  }

  __device__ __forceinline__ void start(Head head) {
    fetch(0, head);
    write(0, 1, head);
  }
  // Writes the statistics of the slab after a position.
  __device__ __forceinline__ void write_next(const SlabPosition& at, Head next) {
    const int ahead = at.slab + 2, slabs = block.plan.slabs;
    write(at.step + 1, ahead < slabs ? ahead : ahead - slabs, ahead < slabs ? at.head : next);
  }
};

// Forms and writes dq of a slab's queries, kTiles x 16 at a time; the warps that do so take turns.
template <typename Traits, int kTiles>
struct DqWriter {
  static constexpr int kD = Traits::kD;
  using T = typename Traits::Element;
  const ResidentBlock<Traits>& block;
  const ShortAttentionBwdParams& params;
  int index, warps;              // this warp's among those that write; their number
  int role, which;               // place of the sums, see ResidentBlock::bias
  LaneColumnSums<kD> sums = {};  // of dq of a head

  // Writes dq of kHere x 16 queries, from `row` of a slab on.
  template <int kHere>
  __device__ __forceinline__ void write(int step, int count, Head head, int query, int row) {
    float dq[kHere][kD / 8][4] = {};
    form_dq<T>(dq, block.scores(step, row / kResidentGroup), row % kResidentGroup / 8, block.keys(count),
               params.num_keys);
    store_gradient(head_rows<T>(params.dq, head.b, head.h), params.dq.token_stride, dq, params.softmax_scale,
                   query + row, params.num_queries);
    sums.add(dq);
  }

  __device__ __forceinline__ void write_slab(int step, int slab, int count, Head head) {
    if (head.b >= params.batch) return;
    const int rows = block.plan.query_rows, query = slab * rows, left = smaller(params.num_queries - query, rows);
#pragma unroll 1
    for (int row = index * kTiles * kTileRows; row < left; row += warps * kTiles * kTileRows) {
      if (kTiles > 1 && left - row > kTileRows) {
        write<kTiles>(step, count, head, query, row);
      } else {
        write<1>(step, count, head, query, row);
      }
    }
    if (float* bias = block.bias(count, role, which); bias != nullptr && slab == block.plan.slabs - 1) {
      sums.reduce([&](int column, float sum) { bias[column] = sum * params.softmax_scale; });
      sums = {};
    }
  }

  // Writes dq of the slab before a position, whose ds is there.
  __device__ __forceinline__ void write_last(const SlabPosition& at) {
    if (at.slab > 0) {
      write_slab(at.step - 1, at.slab - 1, at.count, at.head);
    } else if (at.step > 0) {
      write_slab(at.step - 1, block.plan.slabs - 1, at.count - 1, block.before(at.head));
    }
  }
};

}  // namespace lgfast
