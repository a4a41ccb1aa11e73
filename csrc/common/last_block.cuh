// The last block of a grid to end may do what needs the results of all others.
#pragma once

#include "common/device.cuh"

namespace lgfast {

// Whether this block is the last of `blocks` to ask; the same in every thread. What thread 0 of each block wrote before
// is then there for all threads of the last. counter: 0 before the launch, and again after it, so a captured graph can
// run it anew; no other launch may use it at the same time. flag: shared memory, not in use before.
__device__ __forceinline__ bool is_last_block(uint32_t* counter, int blocks, int* flag) {
  if (thread_index() == 0) *flag = take_turn(counter, uint32_t(blocks)) == uint32_t(blocks) - 1;
  sync_threads();
  return *flag != 0;
}

}  // namespace lgfast
