// Products of matrices that fit in a core's cache: c = a b, or c += a b. One thread computes a product.
#pragma once

#include <cstdint>

#include "common/vectorize.h"

namespace lgfast {

constexpr int kMatmulColumns = 8;  // b and c have a multiple of this many columns

// A left factor. It is read value by value, so it may be stored transposed.
template <typename T>
struct LeftFactor {
  const T* data;
  int64_t row_stride, column_stride;
};

template <typename T>
struct Vector {
  static constexpr int kLanes = 32 / sizeof(T);
  typedef T type __attribute__((vector_size(32), aligned(alignof(T)), may_alias));
};

// Computes one tile of c [kRows, kVectors * lanes]. Its sums stay in registers.
template <typename T, int kRows, int kVectors>
LGFAST_INLINE void matmul_tile(const LeftFactor<T> a, const T* b, int64_t b_stride, int depth, T* c, int64_t c_stride,
                               bool accumulate) {
  using V = typename Vector<T>::type;
  V sums[kRows][kVectors];
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVectors; ++v) sums[r][v] = accumulate ? reinterpret_cast<const V*>(c + r * c_stride)[v] : V{};
  for (int k = 0; k < depth; ++k) {
    const V* row = reinterpret_cast<const V*>(b + k * b_stride);
    for (int r = 0; r < kRows; ++r) {
      const T value = a.data[r * a.row_stride + k * a.column_stride];
      for (int v = 0; v < kVectors; ++v) sums[r][v] += value * row[v];
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVectors; ++v) reinterpret_cast<V*>(c + r * c_stride)[v] = sums[r][v];
}

// Computes the columns of c that kVectors vectors hold, one or two: c [rows, kVectors * lanes] = (or +=)
// a [rows, depth] b. b and c have contiguous rows.
template <typename T, int kVectors>
LGFAST_INLINE void matmul_panel(LeftFactor<T> a, const T* b, int64_t b_stride, int rows, int depth, T* c,
                                int64_t c_stride, bool accumulate) {
  constexpr int kRows = 6;  // 12 sums, two vectors of b and one value of a fit in AVX2's 16 registers
  int left = rows;
  for (; left >= kRows; left -= kRows) {
    matmul_tile<T, kRows, kVectors>(a, b, b_stride, depth, c, c_stride, accumulate);
    a.data += kRows * a.row_stride;
    c += kRows * c_stride;
  }
  switch (left) {
    case 5: return matmul_tile<T, 5, kVectors>(a, b, b_stride, depth, c, c_stride, accumulate);
    case 4: return matmul_tile<T, 4, kVectors>(a, b, b_stride, depth, c, c_stride, accumulate);
    case 3: return matmul_tile<T, 3, kVectors>(a, b, b_stride, depth, c, c_stride, accumulate);
    case 2: return matmul_tile<T, 2, kVectors>(a, b, b_stride, depth, c, c_stride, accumulate);
    case 1: return matmul_tile<T, 1, kVectors>(a, b, b_stride, depth, c, c_stride, accumulate);
  }
}

// c [rows, columns] = (or +=) a [rows, depth] b [depth, columns].
template <typename T>
void matmul(LeftFactor<T> a, const T* b, int64_t b_stride, int rows, int depth, int columns, T* c, int64_t c_stride,
            bool accumulate) {
  constexpr int kLanes = Vector<T>::kLanes;
  int column = 0;
  for (; column + 2 * kLanes <= columns; column += 2 * kLanes)
    matmul_panel<T, 2>(a, b + column, b_stride, rows, depth, c + column, c_stride, accumulate);
  if (column < columns) matmul_panel<T, 1>(a, b + column, b_stride, rows, depth, c + column, c_stride, accumulate);
}

}  // namespace lgfast
