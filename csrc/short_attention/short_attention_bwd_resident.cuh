// Gradients of short_attention where a block holds all keys of a head: five products, each formed once.
//
// A block stays on its multiprocessor and takes head after head. K and V of a head lie in the registers of the key
// warps, 32 keys each, next to dk and dv; its queries pass by in slabs, copied some slabs ahead, across heads. Of a
// slab a key warp forms s^T = k q^T and dp^T = v dout^T and, without leaving registers, dv += p^T dout and dk += ds^T
// q. Only ds goes through shared memory: the query warps, those without keys, form dq = ds k of the slab before, and
// delta of the slab to come; where there is one such warp, a key warp with few keys forms half of dq. So one barrier a
// slab is enough. Few keys have several warps each, which divide the
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

// The position of a block in its heads. The block goes on for two slabs past its last head, to finish that head.
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
  // [D] sums: of dq (which 0) of a query warp, of dk and dv (0 and 1) of a key warp. What a key warp has of dq lies in
  // the place that the only query warp leaves (1).
  __device__ __forceinline__ float* bias(int count, int role, int which) const {
    if (first_bias == nullptr) return nullptr;
    return first_bias + ((count % 2 * Traits::kWarps + role) * 2 + which) * Traits::kD;
  }
  __device__ __forceinline__ float* scratch_of(int part, int group) const {
    return scratch + ((part - 1) * plan.key_groups + group) * 2 * kResidentGroup * Traits::kD + lane_index();
  }
  __device__ __forceinline__ int key_warps() const { return plan.key_groups * plan.parts; }
  // Whether the last key warp, with at most half the keys of the others, forms half of dq: where a single warp has no
  // keys, the others would wait for it.
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
    if (which == 0 && block.splits_dq(params.num_keys)) sum += block.bias(count, Traits::kWarps - 1, 1)[column];
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

// What a product of dq reads of 16 keys: ds^T of kTiles x 16 queries, transposed, and all of k.
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
  // ds of keys that do not exist is anything: `left` of the 16 do.
  __device__ __forceinline__ void clear(int left) {
#pragma unroll
    for (int i = 0; i < kTiles * 4; ++i) {
      const int own = left - 8 * (i % 4 / 2) - 2 * (fresh_lane() % 4);
      ds[i / 4][i % 4] &= own >= 2 ? 0xffffffffu : own == 1 ? 0xffffu : 0u;
    }
  }
};

// dq of kTiles x 16 queries, whose ds^T is read from its chunk `chunk` on. What the next 16 keys need is on its way
// while these are multiplied.
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

// Writes lse and delta of the queries of a slab, in turn with the other warps that do; delta is the diagonal of out
// dout^T. lse comes from global memory, a slab before it is used.
template <typename Traits>
struct StatsWriter {
  static constexpr int kD = Traits::kD;
  static constexpr int kMostParts = 2;  // of a warp; more of them have more warps
  using T = typename Traits::Element;
  const ResidentBlock<Traits>& block;
  const ShortAttentionBwdParams& params;
  int index, warps;       // of those that write; of so many
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

  // Of the slab that was fetched last; the next to fetch is `slab` of `head`.
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

  // Of kTiles tiles at a time, each of whose products waits for the one before.
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
    if (fresh_lane() % 4 != fresh_lane() / 8) return;  // has columns row - row % 2 and the next of its rows
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
  // Of the slab after a position.
  __device__ __forceinline__ void write_next(const SlabPosition& at, Head next) {
    const int ahead = at.slab + 2, slabs = block.plan.slabs;
    write(at.step + 1, ahead < slabs ? ahead : ahead - slabs, ahead < slabs ? at.head : next);
  }
};

// Forms and writes dq of a slab's queries, kTiles x 16 at a time, in turn with the other warps that do.
template <typename Traits, int kTiles>
struct DqWriter {
  static constexpr int kD = Traits::kD;
  using T = typename Traits::Element;
  const ResidentBlock<Traits>& block;
  const ShortAttentionBwdParams& params;
  int index, warps;              // of those that write; of so many
  int role, which;               // place of the sums, see ResidentBlock::bias
  LaneColumnSums<kD> sums = {};  // of dq of a head

  // From `row` of a slab on.
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

  // Of the slab before a position, whose ds is there.
  __device__ __forceinline__ void write_last(const SlabPosition& at) {
    if (at.slab > 0) {
      write_slab(at.step - 1, at.slab - 1, at.count, at.head);
    } else if (at.step > 0) {
      write_slab(at.step - 1, block.plan.slabs - 1, at.count - 1, block.before(at.head));
    }
  }
};

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
  const bool forms_dq = kTiles == 1 && block.role == block.key_warps() - 1 && block.splits_dq(params.num_keys);
  DqWriter<Traits, 1> dq{block, params, 1, 2, Traits::kWarps - 1, 1};
  for_each_slab(block, params, first, [&](const SlabPosition& at, Head) {
    if (forms_dq) dq.write_last(at);
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

// Walks the slabs as one of the warps without keys, which take turns at kTiles x 16 queries.
template <typename Traits, int kTiles>
__device__ __forceinline__ void run_query_warp(const ResidentBlock<Traits>& block,
                                               const ShortAttentionBwdParams& params, SlabPosition first) {
  const int index = block.role - block.key_warps(), warps = Traits::kWarps - block.key_warps();
  const bool splits = block.splits_dq(params.num_keys);
  StatsWriter<Traits> stats{block, params, index, warps};
  DqWriter<Traits, kTiles> dq{block, params, index, splits ? 2 : warps, block.role, 0};
  stats.start(first.head);
  for_each_slab(block, params, first, [&](const SlabPosition& at, Head next) {
    stats.write_next(at, next);
    dq.write_last(at);
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
    if (Traits::kWarps - block.key_warps() <= plan.parts && !block.splits_dq(params.num_keys)) {
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
