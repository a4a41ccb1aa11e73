// Gradients of short_attention where a block holds all keys of a head: five products, each formed once.
//
// A block stays on its multiprocessor and takes head after head. K and V of a head lie in the registers of the key
// warps, 32 keys each, next to dk and dv; its queries pass by in slabs, copied some slabs ahead, across heads. Of a
// slab a key warp forms s^T = k q^T and dp^T = v dout^T and, without leaving registers, dv += p^T dout and dk += ds^T
// q. Only ds goes through shared memory: the query warps, those without keys, form dq = ds k of the slab before, and
// delta of the slab to come. So one barrier a slab is enough. Few keys have several warps each, which divide the
// queries of a larger slab among them; their sums are added in a fixed order.
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

using ScoreTile = SmemTile<kResidentGroup>;  // of ds^T: rows are keys, columns the 32 queries of a part

struct Head {
  int b, h;
};

// Where a block is. It walks two slabs past its last head, in which what is left of that head is finished.
struct SlabPosition {
  int step;   // slabs before this one
  int slab;   // of its head
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
  float* scratch;     // dk and dv of the parts but the first
  ShortAttentionBwdPlan plan;
  int heads;    // of an image
  Head stride;  // from one head of this block to its next
  int role;     // of this warp: part * key groups + key group, then come the query warps

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
  // [D] sums: of dq (which 0) of a query warp, of dk and dv (0 and 1) of a key warp.
  __device__ __forceinline__ float* bias(int count, int role, int which) const {
    if (first_bias == nullptr) return nullptr;
    return first_bias + ((count % 2 * Traits::kWarps + role) * 2 + which) * Traits::kD;
  }
  __device__ __forceinline__ float* scratch_of(int part, int group) const {
    return scratch + ((part - 1) * plan.key_groups + group) * 2 * kResidentGroup * Traits::kD + lane_index();
  }
  __device__ __forceinline__ int key_warps() const { return plan.key_groups * plan.parts; }

  __device__ __forceinline__ Head after(Head head) const {
    const Head next{head.b + stride.b, head.h + stride.h};
    return next.h < heads ? next : Head{next.b + 1, next.h - heads};
  }
  __device__ __forceinline__ Head before(Head head) const {
    const Head last{head.b - stride.b, head.h - stride.h};
    return last.h >= 0 ? last : Head{last.b - 1, last.h + heads};
  }
};

// Warps 3 and 7, of one quarter of a multiprocessor, are the last to get keys: of 13 tiles of keys one has one tile and
// the other none, and dq of all queries is about what they lack.
__device__ __forceinline__ int resident_role(int key_warps) {
  const int warp = warp_index();
  if (key_warps <= 4 || warp < 3 || warp == 7) return warp;
  return warp == 3 ? 6 : warp - 1;
}

// Two warps start copying rows of a head.
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

// dbias of a head, once all its sums are there.
template <typename Traits>
__device__ __forceinline__ void write_bias(const ResidentBlock<Traits>& block, const ShortAttentionBwdParams& params,
                                           int count, Head head) {
  for (int i = thread_index(); i < 3 * Traits::kD; i += Traits::kThreads) {
    const int which = i / Traits::kD, column = i % Traits::kD;
    const int first = which == 0 ? block.key_warps() : 0, end = which == 0 ? Traits::kWarps : block.plan.key_groups;
    float sum = 0.0f;
#pragma unroll 1
    for (int role = first; role < end; ++role) sum += block.bias(count, role, which == 2)[column];
    params.dbias[((int64_t(head.b) * 3 + which) * params.heads + head.h) * Traits::kD + column] = sum;
  }
}

// Calls work(position) for every slab of every head of this block, and two more.
template <typename Traits, typename Work>
__device__ __forceinline__ void for_each_slab(const ResidentBlock<Traits>& block, const ShortAttentionBwdParams& params,
                                              SlabPosition at, const Work& work) {
  constexpr int kAhead = kResidentSlabs - 1;
  const int slabs = block.plan.slabs;
  Head next = block.after(at.head);
  for (;; ++at.step) {
    cp_async_wait<1>();  // the slab after this one is there too
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

// The sums of a key warp.
template <int kD, int kTiles>
struct KeySums {
  static constexpr int kValues = kTiles * kD;  // of a lane
  float dk[kTiles][kD / 8][4], dv[kTiles][kD / 8][4];
};

// dk and dv of one warp's keys += the share of 16 queries; their ds^T goes to `scores`, from its chunk `chunk` on.
template <typename T, int kD, int kTiles>
__device__ __forceinline__ void add_dk_dv(KeySums<kD, kTiles>& sums, const uint32_t (&k)[kD / 16][kTiles][4],
                                          const uint32_t (&v)[kD / 16][kTiles][4], SmemTile<kD> queries,
                                          SmemTile<kD> douts, const QueryStats* stats, ScoreTile scores, int chunk,
                                          float scale_log2) {
  float p[kTiles][2][4] = {}, ds[kTiles][2][4] = {};  // [key][query]
  uint32_t a[kTiles][4];
  multiply_abt<T>(p, k, queries);
  multiply_abt<T>(ds, v, douts);
  score_gradients(p, ds, stats, scale_log2);
#pragma unroll
  for (int r = 0; r < kTiles; ++r) pack_a<T>(a[r], p[r]);
  multiply_ab<T>(sums.dv, a, douts);
  const uint32_t to = scores.at(lane_index() / 4, chunk) + 4 * (lane_index() % 4);
#pragma unroll
  for (int r = 0; r < kTiles; ++r) {
    pack_a<T>(a[r], ds[r]);
#pragma unroll
    for (int i = 0; i < 4; ++i) {  // rows g and g + 8 of this chunk, then of the next
      store_smem_4((i < 2 ? to : to ^ 16) + (r * kTileRows + 8 * (i % 2)) * scores.kRowBytes, a[r][i]);
    }
  }
  multiply_ab<T>(sums.dk, a, queries);
}

// Stores a warp's rows of dk or dv, and their column sums in bias[D], unless that is nullptr.
template <typename T, int kTiles, int kColumnTiles>
__device__ __forceinline__ void write_key_gradient(const HeadsOutput& view, Head head,
                                                   float (&acc)[kTiles][kColumnTiles][4], float factor, int first,
                                                   int limit, float* bias) {
  store_gradient(head_rows<T>(view, head.b, head.h), view.token_stride, acc, factor, first, limit);
  if (bias == nullptr) return;
  clear_rows(acc, limit - first);
  LaneColumnSums<8 * kColumnTiles> sums;
  sums.add(acc);
  sums.reduce([&](int column, float sum) { bias[column] = sum * factor; });
}

// dk and dv of a head: the first part's warp adds the other parts' sums to its own and writes them.
template <typename Traits, int kTiles>
__device__ __forceinline__ void write_dk_dv(const ResidentBlock<Traits>& block, const ShortAttentionBwdParams& params,
                                            KeySums<Traits::kD, kTiles>& sums, int count, Head head, int group) {
  using T = typename Traits::Element;
  float* values = &sums.dk[0][0][0];
#pragma unroll 1
  for (int part = 1; part < block.plan.parts; ++part) {
    const float* theirs = block.scratch_of(part, group);
#pragma unroll
    for (int i = 0; i < sums.kValues; ++i) values[i] += theirs[i * kWarpSize];
  }
  const int key = group * kResidentGroup;
  write_key_gradient<T>(params.dk, head, sums.dk, params.softmax_scale, key, params.num_keys,
                        block.bias(count, block.role, 0));
  write_key_gradient<T>(params.dv, head, sums.dv, 1.0f, key, params.num_keys, block.bias(count, block.role, 1));
}

// Walks the slabs as a warp that owns kTiles x 16 keys.
template <typename Traits, int kTiles>
__device__ __forceinline__ void run_key_warp(const ResidentBlock<Traits>& block, const ShortAttentionBwdParams& params,
                                             SlabPosition first, const float scale_log2) {
  using T = typename Traits::Element;
  constexpr int kD = Traits::kD;
  const int group = block.role % block.plan.key_groups, part = block.role / block.plan.key_groups;
  const int key = group * kResidentGroup, own_row = part * kResidentGroup;
  KeySums<kD, kTiles> sums;
  uint32_t k[kD / 16][kTiles][4], v[kD / 16][kTiles][4];
  for_each_slab(block, params, first, [&](const SlabPosition& at, Head) {
    if (at.slab == 0) {
      if (at.count > 0 && part == 0) write_dk_dv(block, params, sums, at.count - 1, block.before(at.head), group);
      sums = {};
      load_a(k, block.keys(at.count).below(key));
      load_a(v, block.values().below(key));
    }
    if (at.head.b >= params.batch) return;
    const auto queries = block.queries(at.step).below(own_row), douts = block.douts(at.step).below(own_row);
    const QueryStats* stats = block.stats(at.step) + own_row;
    const ScoreTile scores = block.scores(at.step, part).below(key);
    const int left = smaller(params.num_queries - at.slab * block.plan.query_rows - own_row, kResidentGroup);
#pragma unroll 1
    for (int row = 0; row < left; row += kTileRows) {
      add_dk_dv<T>(sums, k, v, queries.below(row), douts.below(row), stats + row, scores, row / 8, scale_log2);
    }
    if (at.slab == block.plan.slabs - 1 && part > 0) {
      const float* values = &sums.dk[0][0][0];
#pragma unroll
      for (int i = 0; i < sums.kValues; ++i) block.scratch_of(part, group)[i * kWarpSize] = values[i];
    }
  });
}

// dq of kTiles x 16 queries: ds^T is read transposed, from its chunk `chunk` on.
template <typename T, int kD, int kTiles>
__device__ __forceinline__ void form_dq(float (&dq)[kTiles][kD / 8][4], ScoreTile scores, int chunk, SmemTile<kD> keys,
                                        int num_keys) {
  const int lane = lane_index();
  const uint32_t first = scores.at(lane % 8 + 8 * (lane / 16), chunk + lane / 8 % 2);
  uint32_t a[kTiles][4];
  const auto load = [&](int key) {
#pragma unroll
    for (int r = 0; r < kTiles; ++r) ldmatrix_x4_trans(a[r], (first ^ (32 * r)) + key * scores.kRowBytes);
  };
  int key = 0;
#pragma unroll 1
  for (; key + kTileRows <= num_keys; key += kTileRows) {
    load(key);
    multiply_ab<T>(dq, a, keys.below(key));
  }
  if (key < num_keys) {
    load(key);
#pragma unroll
    for (int i = 0; i < kTiles * 4; ++i) {  // ds of keys that do not exist is anything
      const int left = num_keys - key - 8 * (i % 4 / 2) - 2 * (lane % 4);
      a[i / 4][i % 4] &= left >= 2 ? 0xffffffffu : left == 1 ? 0xffffu : 0u;
    }
    multiply_ab<T>(dq, a, keys.below(key));
  }
}

// lse and delta of 16 queries: delta is the diagonal of out dout^T.
template <typename T, int kD>
__device__ __forceinline__ void write_stats(QueryStats* stats, SmemTile<kD> outs, SmemTile<kD> douts, const float* lse,
                                            int queries) {
  uint32_t a[kD / 16][1][4];
  float product[1][2][4] = {};
  load_a(a, outs);
  multiply_abt<T>(product, a, douts);
  const int row = lane_index() / 4;
  if (lane_index() % 4 != row / 2) return;  // has columns row - row % 2 and the next
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float* two = &product[0][half][2 * half];
    const float row_lse = row + 8 * half < queries ? lse[row + 8 * half] : -negative_infinity();
    stats[row + 8 * half] = {row_lse * kLog2E, row % 2 == 0 ? two[0] : two[1]};
  }
}

// dq of kTiles x 16 queries, from `row` of a slab on, and their column sums.
template <typename Traits, int kTiles>
__device__ __forceinline__ void write_dq(const ResidentBlock<Traits>& block, const ShortAttentionBwdParams& params,
                                         LaneColumnSums<Traits::kD>& sums, int step, int count, Head head, int query,
                                         int row) {
  using T = typename Traits::Element;
  float dq[kTiles][Traits::kD / 8][4] = {};
  form_dq<T>(dq, block.scores(step, row / kResidentGroup), row % kResidentGroup / 8, block.keys(count),
             params.num_keys);
  store_gradient(head_rows<T>(params.dq, head.b, head.h), params.dq.token_stride, dq, params.softmax_scale, query,
                 params.num_queries);
  sums.add(dq);
}

// Walks the slabs as one of the warps without keys, which take turns at kTiles x 16 queries.
template <typename Traits, int kTiles>
__device__ __forceinline__ void run_query_warp(const ResidentBlock<Traits>& block,
                                               const ShortAttentionBwdParams& params, SlabPosition first) {
  using T = typename Traits::Element;
  constexpr int kD = Traits::kD;
  const int slabs = block.plan.slabs, rows = block.plan.query_rows;
  const int index = block.role - block.key_warps(), warps = Traits::kWarps - block.key_warps();
  const auto prepare = [&](int step, int slab, Head head) {
    if (head.b >= params.batch) return;
    const float* lse = params.lse + (int64_t(head.b) * params.heads + head.h) * params.num_queries + slab * rows;
#pragma unroll 1
    for (int row = index * kTileRows; row < rows; row += warps * kTileRows) {
      write_stats<T>(block.stats(step) + row, block.outs(step).below(row), block.douts(step).below(row), lse + row,
                     params.num_queries - slab * rows - row);
    }
  };
  LaneColumnSums<kD> sums;  // of dq of a head
  const auto finish = [&](int step, int slab, int count, Head head) {
    if (head.b >= params.batch) return;
    const int query = slab * rows, left = smaller(params.num_queries - query, rows);
#pragma unroll 1
    for (int row = index * kTiles * kTileRows; row < left; row += warps * kTiles * kTileRows) {
      if (kTiles > 1 && left - row > kTileRows) {
        write_dq<Traits, kTiles>(block, params, sums, step, count, head, query + row, row);
      } else {
        write_dq<Traits, 1>(block, params, sums, step, count, head, query + row, row);
      }
    }
    if (float* bias = block.bias(count, block.role, 0); bias != nullptr && slab == slabs - 1) {
      sums.reduce([&](int column, float sum) { bias[column] = sum * params.softmax_scale; });
      sums = {};
    }
  };
  prepare(0, 0, first.head);
  for_each_slab(block, params, first, [&](const SlabPosition& at, Head next) {
    if (at.slab < slabs - 1) {
      prepare(at.step + 1, at.slab + 1, at.head);
    } else {
      prepare(at.step + 1, 0, next);
    }
    if (at.slab > 0) {
      finish(at.step - 1, at.slab - 1, at.count, at.head);
    } else if (at.step > 0) {
      finish(at.step - 1, slabs - 1, at.count - 1, block.before(at.head));
    }
  });
}

template <typename Traits>
__global__ void __launch_bounds__(Traits::kThreads, 1)
    short_attention_bwd_resident_kernel(const ShortAttentionBwdParams params, const ShortAttentionBwdPlan plan,
                                        const float scale_log2) {
  ResidentBlock<Traits> block;
  block.plan = plan;
  block.first_tile = {smem_address(dynamic_smem())};
  const int tile_rows = 3 * (plan.key_rows + kResidentSlabs * plan.query_rows);
  unsigned char* rest = dynamic_smem() + tile_rows * Traits::Tile::kRowBytes;
  block.first_scores = {smem_address(rest)};
  rest += 2 * plan.parts * plan.key_rows * ScoreTile::kRowBytes;
  block.first_stats = reinterpret_cast<QueryStats*>(rest);
  float* sums = reinterpret_cast<float*>(block.first_stats + 2 * plan.query_rows);
  block.first_bias = params.dbias != nullptr ? sums : nullptr;
  block.scratch = sums + (params.dbias != nullptr ? 4 * Traits::kWarps * Traits::kD : 0);
  block.heads = params.heads;
  block.stride = {grid_size() / params.heads, grid_size() % params.heads};
  block.role = shfl(resident_role(block.key_warps()), 0);  // from one lane, so that the compiler sees it is the warp's

  const SlabPosition first{0, 0, 0, {block_index() / params.heads, block_index() % params.heads}};
  start_keys(block, params, 0, first.head);
#pragma unroll 1
  for (int slab = 0; slab < kResidentSlabs - 1; ++slab) {
    start_slab(block, params, slab, slab, first.head);
    cp_async_commit();
  }
  cp_async_wait<kResidentSlabs - 2>();
  sync_threads();
  const int first_key = block.role % plan.key_groups * kResidentGroup;
  if (block.role >= block.key_warps()) {
    if (Traits::kWarps - block.key_warps() <= plan.parts) {
      run_query_warp<Traits, 2>(block, params, first);
    } else {
      run_query_warp<Traits, 1>(block, params, first);
    }
  } else if (params.num_keys - first_key > kTileRows) {
    run_key_warp<Traits, 2>(block, params, first, scale_log2);
  } else {
    run_key_warp<Traits, 1>(block, params, first, scale_log2);
  }
}

}  // namespace lgfast
