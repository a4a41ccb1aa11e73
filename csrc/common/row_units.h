// Work units of row-wise CPU kernels. A unit is 64 rows whatever the thread count, so the sums of a unit do not depend
// on that count.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "common/accumulate.h"
#include "common/arithmetic.h"

namespace lgfast {

constexpr int64_t kUnitRows = 64;

inline int64_t num_row_units(int64_t rows) { return ceil_div(rows, kUnitRows); }

// Calls f(unit, first row, end row) for every unit, in parallel.
template <typename F>
void for_each_row_unit(int64_t rows, const F& f) {
  torch::stable::parallel_for(0, num_row_units(rows), 1, [&](int64_t begin, int64_t end) {
    for (int64_t u = begin; u < end; ++u) f(u, u * kUnitRows, std::min(rows, (u + 1) * kUnitRows));
  });
}

// Converts a parameter [n] to the type that the kernel computes in.
template <typename T>
std::vector<typename Accumulate<T>::type> widened(const void* parameter, int n) {
  std::vector<typename Accumulate<T>::type> wide(n);
  for (int i = 0; i < n; ++i) wide[i] = Accumulate<T>::load(static_cast<const T*>(parameter)[i]);
  return wide;
}

}  // namespace lgfast
