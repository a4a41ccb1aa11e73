#include "augment/augment.cuh"

namespace lgfast {
template const char* launch_augment_kernel<bf16>(const AugmentParams&, const AugmentLaunch&, int, void*, void*);
}
