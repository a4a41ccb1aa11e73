// Sums over a warp and a block, in a fixed order: the same values give the same bits.
#pragma once

#include "common/device.cuh"

namespace lgfast {

__device__ inline float xor_lane(float value, int mask) { return shfl_xor(value, mask); }

// Shuffles move 4 bytes, so a double goes in two halves.
__device__ inline double xor_lane(double value, int mask) {
  uint32_t halves[2];
  memcpy(halves, &value, sizeof(value));
  halves[0] = shfl_xor(halves[0], mask);
  halves[1] = shfl_xor(halves[1], mask);
  memcpy(&value, halves, sizeof(value));
  return value;
}

// Returns the sum over the block, the same in every thread. scratch: shared memory, one T per warp, that no thread is
// still using. The call is also a barrier for everything written before it.
template <typename T>
__device__ T block_sum(T value, T* scratch) {
  for (int mask = kWarpSize / 2; mask > 0; mask /= 2) value += xor_lane(value, mask);
  if (lane_index() == 0) scratch[warp_index()] = value;
  sync_threads();
  T sum = 0;
  for (int w = 0; w < num_warps(); ++w) sum += scratch[w];
  return sum;
}

}  // namespace lgfast
