// flat_adamw for every gradient type.
#include "flat_adamw/flat_adamw.cuh"

namespace lgfast {

template const char* launch_flat_adamw_norm<float>(const FlatAdamWParams&, void*);
template const char* launch_flat_adamw_norm<bf16>(const FlatAdamWParams&, void*);
template const char* launch_flat_adamw_norm<fp16>(const FlatAdamWParams&, void*);

template const char* launch_flat_adamw<float>(const FlatAdamWParams&, void*);
template const char* launch_flat_adamw<bf16>(const FlatAdamWParams&, void*);
template const char* launch_flat_adamw<fp16>(const FlatAdamWParams&, void*);

const char* launch_flat_adamw_control(const FlatAdamWControlParams& params, void* stream) {
  return launch_flat_adamw_control_kernel(params, stream);
}

}  // namespace lgfast
