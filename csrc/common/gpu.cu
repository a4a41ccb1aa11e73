#include "common/device.cuh"
#include "common/gpu.h"

namespace lgfast {

int gpu_smem_bytes() { return max_smem_bytes(); }

}  // namespace lgfast
