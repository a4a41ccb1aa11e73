// What the torch side asks of the current GPU.
#pragma once

namespace lgfast {

int gpu_smem_bytes();  // shared memory that a block can have

}  // namespace lgfast
