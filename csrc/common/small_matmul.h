// Products of matrices that fit in a core's cache: c = start + a b. One thread computes a product.
//
// It sums every element in the order of depth, so the size of its tiles changes no bit.
#pragma once

#include <cstdint>

#include "common/host_device.h"
#include "common/vectorize.h"

namespace lgfast {

constexpr int kMatmulColumns = 8;  // b and c have a multiple of this many columns

// A left factor. It is read value by value, so it may be stored transposed.
template <typename T>
struct LeftFactor {
  const T* data;
  int64_t row_stride, column_stride;
};

// What a product is added to, row by row: c itself, or with a stride of 0 one row for all. data is null for nothing.
template <typename T>
struct Start {
  const T* data;
  int64_t stride;
  Start from(int64_t row, int64_t column) const { return data ? Start{data + row * stride + column, stride} : *this; }
};

// A tile is kRows by two vectors of kBytes. Its sums, two vectors of b and one value of a fit in the registers.
struct TileOf16Registers {
  static constexpr int kBytes = 32, kRows = 6;
};
struct TileOf32Registers {  // AVX-512
  static constexpr int kBytes = 64, kRows = 14;
};

template <typename T, int kBytes>
struct Vector {
  static constexpr int kLanes = kBytes / sizeof(T);
  typedef T type __attribute__((vector_size(kBytes), aligned(alignof(T)), may_alias));
};

// Computes one tile of c [kRows, kVectors * lanes]. Its sums stay in registers.
template <typename T, int kBytes, int kRows, int kVectors>
LGFAST_INLINE void matmul_tile(const LeftFactor<T> a, const T* b, int64_t b_stride, int depth, T* c, int64_t c_stride,
                               Start<T> start) {
  using V = typename Vector<T, kBytes>::type;
  constexpr int kReach = 3;  // rows that x86 addresses from one pointer: it adds no, one or two strides
  const T* at[(kRows + kReach - 1) / kReach];
  V sums[kRows][kVectors];
  for (int r = 0; r < kRows; r += kReach) at[r / kReach] = a.data + r * a.row_stride;
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVectors; ++v)
      sums[r][v] = start.data ? reinterpret_cast<const V*>(start.data + r * start.stride)[v] : V{};
  // Fetch what will be written while the products are summed. With AVX-512 that is the next tile, a row at a time: all
  // at once its many rows would keep the processor from fetching anything else.
  constexpr bool kFetchesNext = kBytes == TileOf32Registers::kBytes;
  if (!kFetchesNext && start.data != c)
    for (int r = 0; r < kRows; ++r)
      for (int v = 0; v < kVectors; ++v) __builtin_prefetch(reinterpret_cast<V*>(c + r * c_stride) + v, 1);
  const T* next = c + kRows * c_stride;
  const int part = kFetchesNext ? (depth + kRows - 1) / kRows : depth;
  for (int begin = 0; begin < depth; begin += part, next += c_stride) {
    if (kFetchesNext)
      for (int v = 0; v < kVectors; ++v) __builtin_prefetch(reinterpret_cast<const V*>(next) + v, 1);
    const int end = begin + part < depth ? begin + part : depth;
    for (int k = begin; k < end; ++k, b += b_stride) {
      for (int r = 0; r < kRows; ++r) {
        const T value = at[r / kReach][r % kReach * a.row_stride];
        for (int v = 0; v < kVectors; ++v) sums[r][v] += value * reinterpret_cast<const V*>(b)[v];
      }
      for (const T*& pointer : at) pointer += a.column_stride;
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVectors; ++v) reinterpret_cast<V*>(c + r * c_stride)[v] = sums[r][v];
}

// The same for fewer rows than kRows, counted at run time.
template <typename T, int kBytes, int kRows, int kVectors>
LGFAST_INLINE void matmul_last_rows(const LeftFactor<T> a, const T* b, int64_t b_stride, int rows, int depth, T* c,
                                    int64_t c_stride, Start<T> start) {
  if constexpr (kRows > 1) {
    if (rows == kRows - 1)
      matmul_tile<T, kBytes, kRows - 1, kVectors>(a, b, b_stride, depth, c, c_stride, start);
    else
      matmul_last_rows<T, kBytes, kRows - 1, kVectors>(a, b, b_stride, rows, depth, c, c_stride, start);
  }
}

// Computes the columns of c that kVectors vectors hold, one or two: c [rows, kVectors * lanes] = start +
// a [rows, depth] b. b and c have contiguous rows.
template <typename T, int kBytes, int kRows, int kVectors>
LGFAST_INLINE void matmul_panel(LeftFactor<T> a, const T* b, int64_t b_stride, int rows, int depth, T* c,
                                int64_t c_stride, Start<T> start) {
  for (; rows >= kRows; rows -= kRows) {
    matmul_tile<T, kBytes, kRows, kVectors>(a, b, b_stride, depth, c, c_stride, start);
    a.data += kRows * a.row_stride;
    c += kRows * c_stride;
    start = start.from(kRows, 0);
  }
  matmul_last_rows<T, kBytes, kRows, kVectors>(a, b, b_stride, rows, depth, c, c_stride, start);
}

// c [rows, columns] = start + a [rows, depth] b [depth, columns].
template <typename T, typename Tile>
void matmul(LeftFactor<T> a, const T* b, int64_t b_stride, int rows, int depth, int columns, T* c, int64_t c_stride,
            Start<T> start) {
  constexpr int kBytes = Tile::kBytes, kRows = Tile::kRows, kLanes = Vector<T, kBytes>::kLanes;
  int column = 0;
  for (; column + 2 * kLanes <= columns; column += 2 * kLanes)
    matmul_panel<T, kBytes, kRows, 2>(a, b + column, b_stride, rows, depth, c + column, c_stride,
                                      start.from(0, column));
  for (; column + kLanes <= columns; column += kLanes)
    matmul_panel<T, kBytes, kRows, 1>(a, b + column, b_stride, rows, depth, c + column, c_stride,
                                      start.from(0, column));
  if constexpr (kLanes > kMatmulColumns)
    if (column < columns)
      matmul_panel<T, kMatmulColumns * sizeof(T), kRows, 1>(a, b + column, b_stride, rows, depth, c + column, c_stride,
                                                            start.from(0, column));
}

// Runs `matmul` at the level in use.
template <typename T>
void matmul_at_level(LeftFactor<T> a, const T* b, int64_t b_stride, int rows, int depth, int columns, T* c,
                     int64_t c_stride, Start<T> start) {
  at_level<matmul<T, TileOf16Registers>, matmul<T, TileOf32Registers>>(a, b, b_stride, rows, depth, columns, c,
                                                                       c_stride, start);
}

}  // namespace lgfast
