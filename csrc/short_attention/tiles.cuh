// Tiles of short_attention: rows of D 16-bit values in shared memory, mma fragments made from them, and products.
//
// Fragment layout of m16n8k16 (PTX ISA): of a 16 x 8 accumulator, lane 4 g + c holds columns 2c and 2c + 1 of rows g
// (elements 0, 1) and g + 8 (elements 2, 3). Two neighbouring accumulators, packed, are the A operand of a product over
// their 16 columns. So scores become probabilities and enter the next product without leaving registers.
#pragma once

#include <type_traits>

#include "common/device.cuh"
#include "short_attention/short_attention.h"
#include "short_attention/short_attention_plan.h"

namespace lgfast {
// The lane's index, computed where it is used. The compiler cannot compute values from it before a loop, which would
// take registers through the loop.
__device__ __forceinline__ int fresh_lane() { return opaque(lane_index()) % uint32_t(kWarpSize); }
// The warp's index in its warpgroup, computed where it is used; see fresh_lane.
__device__ __forceinline__ int fresh_warp() { return opaque(warp_index()) % uint32_t(kWarpgroupWarps); }

constexpr float kLog2E = 1.44269504088896340736f;
constexpr float kLn2 = 0.69314718055994530942f;

__device__ __forceinline__ float negative_infinity() { return bit_cast<float>(0xff800000u); }

// A row-major [rows][D] tile in shared memory. Its 16-byte chunks are swizzled (or its rows padded), so that the eight
// rows of an ldmatrix use no bank twice. A tile begins at a multiple of eight rows, so rows may be counted from there.
template <int kHeadDim>
struct SmemTile {
  static_assert(kHeadDim == 32 || kHeadDim == 48 || kHeadDim == 64, "swizzle is written for these widths");
  static constexpr int kRowBytes = smem_row_bytes(kHeadDim);
  uint32_t address;

  __device__ __forceinline__ uint32_t at(int row, int chunk) const {
    if constexpr (kHeadDim == 64) chunk ^= row & 7;
    if constexpr (kHeadDim == 32) chunk ^= (row >> 1) & 3;
    return address + row * kRowBytes + 16 * chunk;
  }

  // Takes the address of chunk 0 or 1 of a row, and returns that of the chunk `step` further on in the row; step is
  // even. This is one instruction, since the address bits of a swizzled chunk hold nothing else.
  static __device__ __forceinline__ uint32_t advance(uint32_t chunk, int step) {
    return kHeadDim == 48 ? chunk + 16 * step : chunk ^ (16 * step);
  }

  __device__ __forceinline__ SmemTile below(int rows) const { return {address + rows * kRowBytes}; }
};

struct Head {
  int b, h;
};

template <typename T, typename Pointer>
__device__ __forceinline__ auto head_rows(const HeadsView<Pointer>& view, int b, int h) {
  if constexpr (std::is_same_v<Pointer, const void*>) {
    return static_cast<const T*>(view.data) + b * view.batch_stride + h * view.head_stride;
  } else {
    return static_cast<T*>(view.data) + b * view.batch_stride + h * view.head_stride;
  }
}

// Starts copying rows [first, first + rows) of a head into a tile, with `threads` threads. Rows from `limit` on become
// zeros. A thread copies the same chunk of each of its rows; with D = 48 the last few threads copy nothing.
template <typename T, int kHeadDim>
__device__ __forceinline__ void load_rows_async(SmemTile<kHeadDim> tile, const T* head, int64_t token_stride, int first,
                                                int rows, int limit, int thread, int threads) {
  constexpr int kChunks = kHeadDim / 8;
  const int chunk = uint32_t(thread) % kChunks, step = threads / kChunks;
  int row = uint32_t(thread) / kChunks;
  if (row >= step) return;
  const T* from = head + uint32_t(first + row) * token_stride + 8 * chunk;
  const bool is_regular = kHeadDim == 48 || step % 8 == 0;  // the swizzle is the same in all of a thread's rows
  uint32_t to = tile.at(row, chunk);
#pragma unroll 1
  for (; row < rows; row += step, from += step * token_stride) {
    cp_async_16(is_regular ? to : tile.at(row, chunk), from, first + row < limit);
    to += step * tile.kRowBytes;
  }
}

// Loads an A operand: the first 16 kRows rows of a tile, columns [16 step, 16 step + 16) of D.
template <int kHeadDim, int kRows>
__device__ __forceinline__ void load_a_step(uint32_t (&a)[kRows][4], SmemTile<kHeadDim> tile, int step) {
  const uint32_t first = tile.advance(tile.at(lane_index() % 16, lane_index() / 16), 2 * step);
#pragma unroll
  for (int r = 0; r < kRows; ++r) ldmatrix_x4(a[r], first + r * kTileRows * tile.kRowBytes);
}

template <int kHeadDim, int kRows>
__device__ __forceinline__ void load_a(uint32_t (&a)[kHeadDim / 16][kRows][4], SmemTile<kHeadDim> tile) {
#pragma unroll
  for (int step = 0; step < kHeadDim / 16; ++step) load_a_step(a[step], tile, step);
}

// acc[r] += a[r] * (16 rows)^T over columns [16 step, 16 step + 16) of D: 16 x 16 scores for each row tile. The 16 rows
// are those of the tile from `row` on. `row` is a constant, so it costs no instruction, unlike a tile that begins
// there.
template <typename T, int kHeadDim, int kRows>
__device__ __forceinline__ void multiply_abt_step(float (&acc)[kRows][2][4], const uint32_t (&a)[kRows][4],
                                                  SmemTile<kHeadDim> tile, int step, int row = 0) {
  const int lane = lane_index();
  const uint32_t first = tile.at(lane % 8 + 8 * (lane / 16), lane / 8 % 2);
  uint32_t b[4];
  ldmatrix_x4(b, tile.advance(first, 2 * step) + row * tile.kRowBytes);
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    mma_m16n8k16<T>(acc[r][0], a[r], b[0], b[1]);
    mma_m16n8k16<T>(acc[r][1], a[r], b[2], b[3]);
  }
}

// The same over all of D.
template <typename T, int kHeadDim, int kRows>
__device__ __forceinline__ void multiply_abt(float (&acc)[kRows][2][4], const uint32_t (&a)[kHeadDim / 16][kRows][4],
                                             SmemTile<kHeadDim> tile, int row = 0) {
#pragma unroll
  for (int step = 0; step < kHeadDim / 16; ++step) multiply_abt_step<T>(acc, a[step], tile, step, row);
}

// acc[r] += a[r] * (16 rows from the constant `row` on), summed over them: 16 x D for each of kRows row tiles.
template <typename T, int kHeadDim, int kRows>
__device__ __forceinline__ void multiply_ab(float (&acc)[kRows][kHeadDim / 8][4], const uint32_t (&a)[kRows][4],
                                            SmemTile<kHeadDim> tile, int row = 0) {
  const uint32_t first = tile.at(lane_index() % 16, lane_index() / 16);
#pragma unroll
  for (int j = 0; j < kHeadDim / 8; j += 2) {
    uint32_t b[4];
    ldmatrix_x4_trans(b, tile.advance(first, j) + row * tile.kRowBytes);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      mma_m16n8k16<T>(acc[r][j], a[r], b[0], b[1]);
      mma_m16n8k16<T>(acc[r][j + 1], a[r], b[2], b[3]);
    }
  }
}

template <typename T>
__device__ __forceinline__ void pack_a(uint32_t (&a)[4], const float (&acc)[2][4]) {
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    a[2 * j] = pack2<T>(acc[j][0], acc[j][1]);
    a[2 * j + 1] = pack2<T>(acc[j][2], acc[j][3]);
  }
}

// Of four neighbouring lanes, lane c holds word c of four chunks before, and the four words of chunk c afterwards.
__device__ __forceinline__ void transpose_quad(uint32_t (&words)[4]) {
  const bool odd = fresh_lane() & 1, upper = fresh_lane() & 2;
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const uint32_t received = shfl_xor(odd ? words[i] : words[i + 1], 1);
    words[i] = odd ? received : words[i];
    words[i + 1] = odd ? words[i + 1] : received;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t received = shfl_xor(upper ? words[i] : words[i + 2], 2);
    words[i] = upper ? received : words[i];
    words[i + 2] = upper ? words[i + 2] : received;
  }
}

// Multiplies a 16 x D accumulator by factor_low (its first eight rows) or factor_high (the others), rounds it to T, and
// stores its rows from `first` on, up to `limit`, in 16-byte chunks.
template <typename T, int kHeadDim>
__device__ __forceinline__ void store_rows(T* head, int64_t token_stride, const float (&acc)[kHeadDim / 8][4],
                                           float factor_low, float factor_high, int first, int limit) {
  constexpr int kChunks = kHeadDim / 8;
  const int quad_lane = fresh_lane() % 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = first + fresh_lane() / 4 + 8 * half;
    const float factor = half == 0 ? factor_low : factor_high;
#pragma unroll
    for (int group = 0; group < kChunks; group += 4) {
      Vector16 chunk{};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (group + i >= kChunks) continue;
        const float* pair = &acc[group + i][2 * half];
        chunk.words[i] = pack2<T>(pair[0] * factor, pair[1] * factor);
      }
      transpose_quad(chunk.words);
      if (row < limit && group + quad_lane < kChunks) {
        *reinterpret_cast<Vector16*>(head + row * token_stride + 8 * (group + quad_lane)) = chunk;
      }
    }
  }
}

}  // namespace lgfast
