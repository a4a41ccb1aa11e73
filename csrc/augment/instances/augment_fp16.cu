#include "augment/augment.cuh"

namespace lgfast {
template const char* launch_augment_kernel<fp16>(const AugmentParams&, const AugmentLaunch&, int, void*, void*);
}
