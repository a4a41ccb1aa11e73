// What two warpgroups form in the backward kernel by warpgroups: one dv, the other dk. Their sums are transposed,
// [D][keys]: D is the 64 rows of a product.
#pragma once

#include "short_attention/bwd_wgmma_block.cuh"

namespace lgfast {

// Starts sums += rows^T scores: of kSteps times 16 rows of dout or q, and as many columns of p^T or ds^T.
template <typename T, int kSteps, int kBlocks>
__device__ __forceinline__ void start_rows_sums(float (&sums)[kBlocks][4], SmemTile<64> rows, SmemTile<64> scores,
                                                bool adds) {
  const uint64_t a = warpgroup_descriptor(rows.address), b = warpgroup_descriptor(scores.address);
  warpgroup_fence();
#pragma unroll
  for (int step = 0; step < kSteps; ++step)
    warpgroup_atbt<T>(sums, advance_descriptor(a, step * kTileRows * rows.kRowBytes), advance_descriptor(b, 32 * step),
                      adds || step > 0);
  warpgroup_commit();
}

// Adds those of a slab to sums. Meanwhile calls other(queries of the slab).
template <typename Traits, int kBlocks, typename F>
__device__ __forceinline__ void add_slab(float (&sums)[kBlocks][4], SmemTile<64> rows, SmemTile<64> scores, int slab,
                                         const F& other) {
  using T = typename Traits::Element;
  constexpr int kLastRows = kWgmmaKeys % Traits::kSlab;
  if (slab < Traits::kSlabs - 1) {
    start_rows_sums<T, Traits::kSlab / kTileRows>(sums, rows, scores, slab > 0);
    other(Traits::kSlab);
    warpgroup_wait<0>(sums);
  } else {
    start_rows_sums<T, kLastRows / kTileRows>(sums, rows, scores, true);
    other(kLastRows);
    warpgroup_wait<0>(sums);
  }
}

// Returns the sum of columns [8 first, 8 end) of this thread's row of ds^T, if it is one of so many rows.
template <typename T>
__device__ __forceinline__ float sum_of_row(SmemTile<64> ds, int rows, int first, int end) {
  const int row = opaque(thread_index()) % uint32_t(BwdWgmmaBarriers::kGroupThreads);
  if (row >= rows) return 0.0f;
  float sum = 0.0f;
  const uint32_t start = ds.at(row, 0) - smem_address(dynamic_smem());
#pragma unroll
  for (int chunk = first; chunk < end; ++chunk) {
    const Vector16 values = *reinterpret_cast<const Vector16*>(dynamic_smem() + (start ^ (16 * chunk)));
#pragma unroll
    for (const uint32_t word : values.words) sum += unpack_low<T>(word) + unpack_high<T>(word);
  }
  return sum;
}

// Stores factor times a warp's sums [16 of D][keys] as columns of rows of keys from `first` on, up to `limit`, by way
// of 96 rows of shared memory, of which nobody else touches these columns.
template <typename T, int kBlocks>
__device__ __forceinline__ void write_keys(const float (&sums)[kBlocks][4], float factor, SmemTile<64> tile, T* head,
                                           int64_t token_stride, int first, int limit) {
  constexpr int kGroup = 6;  // blocks of eight keys at a time
  const int lane = fresh_lane(), chunk = 2 * fresh_warp();
  const uint32_t to = tile.at(lane % 8 + lane / 16 * 8, chunk + lane / 8 % 2);
  const uint32_t from = tile.at(lane % 16, chunk + lane / 16) - smem_address(dynamic_smem());
  head += (first + lane % 16) * token_stride + 8 * (chunk + lane / 16);
#pragma unroll
  for (int start = 0; start < kBlocks; start += kGroup) {
    const int place = start / kGroup % 2 * kGroup;
#pragma unroll
    for (int block = start; block < smaller(start + kGroup, kBlocks); block += 2) {
      uint32_t words[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* pair = &sums[block + i / 2][i % 2 * 2];
        words[i] = pack2<T>(pair[0] * factor, pair[1] * factor);
      }
      stmatrix_x4_trans(to + (place + block - start) * 8 * tile.kRowBytes, words);
    }
    sync_warp();
#pragma unroll
    for (int block = start; block < smaller(start + kGroup, kBlocks); block += 2) {
      const unsigned char* row = dynamic_smem() + from + (place + block - start) * 8 * tile.kRowBytes;
      if (first + lane % 16 + 8 * block < limit)
        *reinterpret_cast<Vector16*>(head) = *reinterpret_cast<const Vector16*>(row);
      head += kTileRows * token_stride;
    }
  }
  sync_warp();
}

// Adds up a warpgroup's sums [D][8 kBlocks], this lane's share: of rows g and g + 8 of a warp.
template <int kBlocks>
__device__ __forceinline__ void add_columns(float (&total)[2], const float (&sums)[kBlocks][4]) {
  float parts[4] = {};  // chains of additions that do not wait for one another
#pragma unroll
  for (int i = 0; i < 4 * kBlocks; ++i) parts[i % 4] += sums[i / 4][i % 4];
  total[0] += parts[0] + parts[1];
  total[1] += parts[2] + parts[3];
}

// Writes factor times such shares, added up over lanes, to to[D].
__device__ __forceinline__ void write_columns(float* to, const float (&total)[2], float factor) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float value = total[half];
    value += shfl_xor(value, 1);
    value += shfl_xor(value, 2);
    if (fresh_lane() % 4 == 0) to[fresh_warp() * kTileRows + 8 * half + fresh_lane() / 4] = value * factor;
  }
}

// Writes dv or dk of a head, and their sums over keys.
template <typename Traits, bool kIsDk, int kFirstBlocks, int kSecondBlocks>
__device__ __forceinline__ void finish_keys(const float (&first)[kFirstBlocks][4],
                                            const float (&second)[kSecondBlocks][4],
                                            const ShortAttentionBwdParams& params, const BwdWgmmaMemory& at, int step) {
  using T = typename Traits::Element;
  const Head head = head_at(head_index<Traits>(step), params.heads);
  const HeadsOutput& view = kIsDk ? params.dk : params.dv;
  const float factor = kIsDk ? params.softmax_scale : 1.0f;
  if (params.dbias != nullptr) {  // beyond the keys that exist, sums are zero
    float total[2] = {};
    add_columns(total, first);
    add_columns(total, second);
    write_columns(bias_of(params, head, kIsDk ? 1 : 2), total, factor);
  }
  const auto tile = kIsDk ? at.dk_rows(step) : at.dv_rows(step);
  T* to = head_rows<T>(view, head.b, head.h);
  write_keys<T>(first, factor, tile, to, view.token_stride, 0, params.num_keys);
  write_keys<T>(second, factor, tile, to, view.token_stride, 8 * kFirstBlocks, params.num_keys);
}

// Writes this thread's sums over queries of ds of two keys.
template <typename Traits>
__device__ __forceinline__ void write_key_sums(float* to, const float (&sums)[2]) {
  const int thread = opaque(thread_index()) % uint32_t(BwdWgmmaBarriers::kGroupThreads);
  if (thread < 8 * Traits::kFirstBlocks) to[thread] = sums[0];
  if (thread < 8 * Traits::kSecondBlocks) to[8 * Traits::kFirstBlocks + thread] = sums[1];
}

// Writes the sums over queries of dq, which are those of ds times k, with the warpgroup of dv.
template <typename Traits>
__device__ __forceinline__ void write_query_sums(const ShortAttentionBwdParams& params, const BwdWgmmaMemory& at,
                                                 int step) {
  using T = typename Traits::Element;
  using Barriers = BwdWgmmaBarriers;
  constexpr int kGroups = Barriers::kGroupThreads / 8;  // of keys; eight threads have the columns of one
  const float *of_keys = at.key_sums(step, false), *others = at.key_sums(step, true);
  float* of_warps = at.warp_sums();
  const int thread = opaque(thread_index()) % uint32_t(Barriers::kGroupThreads), chunk = thread % 8;
  float sums[8] = {};
#pragma unroll
  for (int round = 0; round < kWgmmaKeys / kGroups; ++round) {
    const int key = thread / 8 + round * kGroups;
    const uint32_t place = at.keys(step / Traits::kSlabs).at(key, chunk) - smem_address(dynamic_smem());
    const Vector16 k = *reinterpret_cast<const Vector16*>(dynamic_smem() + place);
    const float factor = of_keys[key] + others[key];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sums[2 * i] += factor * unpack_low<T>(k.words[i]);
      sums[2 * i + 1] += factor * unpack_high<T>(k.words[i]);
    }
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    sums[i] += shfl_xor(sums[i], 8);
    sums[i] += shfl_xor(sums[i], 16);
    if (fresh_lane() < 8) of_warps[fresh_warp() * Traits::kD + 8 * chunk + i] = sums[i];
  }
  barrier_sync(Barriers::kWarpSums, Barriers::kGroupThreads);
  if (thread >= Traits::kD) return;
  float sum = 0.0f;
#pragma unroll
  for (int warp = 0; warp < kWarpgroupWarps; ++warp) sum += of_warps[warp * Traits::kD + thread];
  bias_of(params, head_at(head_index<Traits>(step), params.heads), 0)[thread] = sum * params.softmax_scale;
}

// Takes every head as the warpgroup of dv or of dk. Each adds up the ds of half of the queries, for the sums of dq.
template <typename Traits, bool kIsDk>
__device__ __forceinline__ void take_keys(const ShortAttentionBwdParams& params) {
  using T = typename Traits::Element;
  using Barriers = BwdWgmmaBarriers;
  constexpr int kFirstKeys = 8 * Traits::kFirstBlocks, kSecondKeys = 8 * Traits::kSecondBlocks;
  const BwdWgmmaMemory at;
  float first[Traits::kFirstBlocks][4], second[Traits::kSecondBlocks][4], ds_sums[2];
  const auto add = [&](float& sum, SmemTile<64> ds, int keys, int queries) {
    const int half = queries / 16;  // chunks
    if (params.dbias != nullptr) sum += sum_of_row<T>(ds, keys, kIsDk ? half : 0, kIsDk ? 2 * half : half);
  };
#pragma unroll 1
  for (int step = 0; exists<Traits>(step, params); ++step) {
    const int slab = uint32_t(step) % Traits::kSlabs;
    const auto rows = kIsDk ? at.queries(slab) : at.douts(slab), scores = kIsDk ? at.ds() : at.p();
    if (slab == 0) ds_sums[0] = ds_sums[1] = 0.0f;
    barrier_sync(Barriers::ready(0), Barriers::kScoresThreads);
    add_slab<Traits>(first, rows, scores, slab, [&](int queries) { add(ds_sums[0], at.ds(), kFirstKeys, queries); });
    if (exists<Traits>(step + 1, params)) barrier_arrive(Barriers::free(0), Barriers::kScoresThreads);
    barrier_sync(Barriers::ready(1), Barriers::kScoresThreads);
    add_slab<Traits>(second, rows, scores.below(kFirstKeys), slab,
                     [&](int queries) { add(ds_sums[1], at.ds().below(kFirstKeys), kSecondKeys, queries); });
    if (exists<Traits>(step + 1, params)) barrier_arrive(Barriers::free(1), Barriers::kScoresThreads);
    barrier_arrive(Barriers::done(step), Barriers::kDoneThreads);
    if (slab == Traits::kSlabs - 1) {
      // Nobody reads the values of this head any more; what lies there instead stays until the next slab is done.
      if (params.dbias != nullptr) write_key_sums<Traits>(at.key_sums(step, kIsDk), ds_sums);
      if (kIsDk && params.dbias != nullptr) barrier_arrive(Barriers::kKeySums, Barriers::kKeySumsThreads);
      finish_keys<Traits, kIsDk>(first, second, params, at, step);
      if (!kIsDk && params.dbias != nullptr) {
        barrier_sync(Barriers::kKeySums, Barriers::kKeySumsThreads);
        write_query_sums<Traits>(params, at, step);
      }
    }
  }
}

}  // namespace lgfast
