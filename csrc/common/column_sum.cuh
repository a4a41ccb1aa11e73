// Adds up the columns of partial results, in a fixed order. It is the last step of a gradient to which many blocks
// contribute.
//
// A block owns 32 columns. Each of its warps reads one row at a time, so a row's 32 columns are one 128-byte access.
// The block adds the warps' sums in shared memory. The order of additions depends on the sizes alone.
#pragma once

#include "common/arithmetic.h"
#include "common/device.cuh"

namespace lgfast {

constexpr int kColumnSumThreads = 512;

template <typename T>
__global__ void __launch_bounds__(kColumnSumThreads)
    column_sum_kernel(const float* __restrict__ partials,  // [rows, columns]
                      int rows, int columns,
                      T* __restrict__ out) {  // [columns]
  float* sums = reinterpret_cast<float*>(dynamic_smem());
  const int column = block_index() * kWarpSize + lane_index();
  float sum = 0.0f;
  if (column < columns) {
#pragma unroll 8
    for (int row = warp_index(); row < rows; row += kColumnSumThreads / kWarpSize)
      sum += partials[static_cast<int64_t>(row) * columns + column];
  }
  sums[thread_index()] = sum;
  sync_threads();
  if (warp_index() > 0 || column >= columns) return;
  for (int warp = 1; warp < kColumnSumThreads / kWarpSize; ++warp) sum += sums[warp * kWarpSize + lane_index()];
  out[column] = from_float<T>(sum);
}

// If rows is 0, the sums are 0.
template <typename T>
const char* launch_column_sum(const float* partials, int rows, int columns, void* out, void* stream) {
  const int smem_bytes = kColumnSumThreads * static_cast<int>(sizeof(float));
  return launch(column_sum_kernel<T>, Grid{ceil_div(columns, kWarpSize)}, kColumnSumThreads, smem_bytes, stream,
                partials, rows, columns, static_cast<T*>(out));
}

}  // namespace lgfast
