#include "augment/augment.cuh"

namespace lgfast {
template const char* launch_augment_kernel<float>(const AugmentParams&, const AugmentLaunch&, int, void*, void*);
}
