// What forward and backward of short_attention share on the CPU: the tokens of a head, and memory for its matrices.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "common/arithmetic.h"
#include "common/kept_memory.h"
#include "short_attention/short_attention.h"

namespace lgfast {

constexpr int kBlockScores = 96 * 1024;  // scores of a block of queries: 384 KB in float32, in the second-level cache
constexpr double kLog2E = 1.4426950408889634;

// The tokens of one head, one every `stride` elements.
template <typename T>
struct Rows {
  T* data;
  int64_t stride;
  Rows from(int first) const { return {data + first * stride, stride}; }
  operator Rows<const T>() const { return {data, stride}; }
};

template <typename T>
Rows<const T> head_rows(const HeadsInput& view, int batch, int head) {
  return {static_cast<const T*>(view.data) + batch * view.batch_stride + head * view.head_stride, view.token_stride};
}

template <typename T>
Rows<T> head_rows(const HeadsOutput& view, int batch, int head) {
  return {static_cast<T*>(view.data) + batch * view.batch_stride + head * view.head_stride, view.token_stride};
}

struct Unset {};  // for memory that holds anything

// Memory for a matrix, zeroed unless it may be unset, with rows padded to whole vectors. The distance between rows is
// no multiple of 128 elements: such a distance would map all rows to the same few cache lines.
template <typename T>
struct Room {
  const int stride;
  T* const data;
  Room(int rows, int columns) : Room(rows, columns, Unset{}) { std::fill_n(data, int64_t(rows) * stride, T{}); }
  Room(int rows, int columns, Unset)
      : stride(row_stride(columns)),
        data(static_cast<T*>(KeptMemory::of_thread().take(size_t(rows) * stride * sizeof(T)))) {}
  Room(const Room&) = delete;
  ~Room() { KeptMemory::of_thread().give_back(); }
  Rows<T> rows() { return {data, stride}; }

 private:
  static int row_stride(int columns) {
    constexpr int kLanes = 16;
    const int padded = round_up(columns, kLanes);
    return padded % 128 ? padded : padded + kLanes;
  }
};

inline int queries_of_block(int queries, int keys) {
  const int most = std::max(6, kBlockScores / round_up(keys, 8)), blocks = ceil_div(queries, most);
  return ceil_div(queries, blocks);
}

}  // namespace lgfast
