// What the torch side asks of the current GPU.
#pragma once

#include <cstdint>

namespace lgfast {

int gpu_smem_bytes();  // shared memory that a block can have

// A counter in the current GPU's memory for one launch that is about to go to the stream, or to be captured from it. It
// is 0 before the launch, and the kernel must leave 0. No launch that may run at the same time gets the same.
// nullptr: there is none, as after 4,096 captures; the kernel must do without.
uint32_t* launch_counter(void* stream);

}  // namespace lgfast
