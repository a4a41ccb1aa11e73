// Products whose right factor is copied first into panels of 32 columns. The rows of a panel lie one behind the other,
// so none drives another out of the first-level cache.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/small_matmul.h"
#include "common/transpose.h"
#include "short_attention/head_rows.h"

namespace lgfast {

constexpr int kPanelColumns = 32;

// Copies b [depth, columns] into panels.
template <typename T>
void pack(const T* __restrict__ b, int depth, int columns, T* __restrict__ panels) {
  for (int first = 0; first < columns; first += kPanelColumns) {
    const int width = std::min(kPanelColumns, columns - first);
    for (int k = 0; k < depth; ++k, panels += width)
      for (int c = 0; c < width; ++c) panels[c] = b[int64_t(k) * columns + first + c];
  }
}

// The same for a b that is stored transposed: [columns, depth].
template <typename T>
void pack_turned(const T* b, int depth, int columns, T* panels) {
  for (int first = 0; first < columns; first += kPanelColumns) {
    const int width = std::min(kPanelColumns, columns - first);
    transpose(b + int64_t(first) * depth, depth, width, depth, panels, width);
    panels += int64_t(depth) * width;
  }
}

// c [rows, columns] = start + a [rows, depth] b, with b in panels.
template <typename T>
void panel_product(Rows<const T> a, const T* panels, int rows, int depth, int columns, Rows<T> c,
                   Start<T> start = {nullptr, 0}) {
  for (int first = 0; first < columns; first += kPanelColumns) {
    const int width = std::min(kPanelColumns, columns - first);
    matmul_at_level<T>({a.data, a.stride, 1}, panels + int64_t(first) * depth, width, rows, depth, width,
                       c.data + first, c.stride, start.from(0, first));
  }
}

}  // namespace lgfast
