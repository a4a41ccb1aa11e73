// Properties of the current GPU, for the torch side.
#pragma once

namespace lgfast {

int gpu_smem_bytes();  // shared memory that a block can have

}  // namespace lgfast
