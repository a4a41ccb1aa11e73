// Transposes matrices by vector instructions.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/small_matmul.h"

namespace lgfast {

// The values of a and b, one behind the other, at these places.
#if defined(__clang__)
#define LGFAST_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define LGFAST_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Places{__VA_ARGS__})
#endif

// Transposes 8 x 8 values: pairs of rows, then fours, then all eight. A shuffle stays within halves of a vector as long
// as it can, which is one instruction at every level.
template <typename T>
LGFAST_INLINE void transpose_square(const T* from, int64_t from_stride, T* to, int64_t to_stride) {
  using V = typename Vector<T, 8 * sizeof(T)>::type;
  using Place = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
  [[maybe_unused]] typedef Place Places __attribute__((vector_size(8 * sizeof(T))));
  V a[8], b[8];
  for (int r = 0; r < 8; ++r) a[r] = *reinterpret_cast<const V*>(from + r * from_stride);
  for (int r = 0; r < 8; r += 2) {
    b[r] = LGFAST_SHUFFLE(a[r], a[r + 1], 0, 8, 1, 9, 4, 12, 5, 13);
    b[r + 1] = LGFAST_SHUFFLE(a[r], a[r + 1], 2, 10, 3, 11, 6, 14, 7, 15);
  }
  for (int r = 0; r < 8; r += 4)
    for (int half = 0; half < 2; ++half) {
      a[r + 2 * half] = LGFAST_SHUFFLE(b[r + half], b[r + half + 2], 0, 1, 8, 9, 4, 5, 12, 13);
      a[r + 2 * half + 1] = LGFAST_SHUFFLE(b[r + half], b[r + half + 2], 2, 3, 10, 11, 6, 7, 14, 15);
    }
  for (int c = 0; c < 4; ++c) {
    *reinterpret_cast<V*>(to + c * to_stride) = LGFAST_SHUFFLE(a[c], a[c + 4], 0, 1, 2, 3, 8, 9, 10, 11);
    *reinterpret_cast<V*>(to + (c + 4) * to_stride) = LGFAST_SHUFFLE(a[c], a[c + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  }
}

#undef LGFAST_SHUFFLE

// to [columns, rows] = the transpose of from [rows, columns].
template <typename T>
LGFAST_INLINE void transpose(const T* from, int64_t from_stride, int rows, int columns, T* to, int64_t to_stride) {
  const int whole_rows = rows / 8 * 8, whole_columns = columns / 8 * 8;
  for (int r = 0; r < whole_rows; r += 8)
    for (int c = 0; c < whole_columns; c += 8)
      transpose_square(from + r * from_stride + c, from_stride, to + c * to_stride + r, to_stride);
  for (int r = 0; r < rows; ++r)
    for (int c = r < whole_rows ? whole_columns : 0; c < columns; ++c)
      to[c * to_stride + r] = from[r * from_stride + c];
}

}  // namespace lgfast
